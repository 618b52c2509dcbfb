"""Two processes that save and load together. Run by test_ranks.py under torch.distributed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from drivetrain.checkpoint import CheckpointContents, load_checkpoint, save_checkpoint, validate
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState


def agree(ok: bool) -> bool:
    flag = torch.tensor(int(ok))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def spread(folder: str, together: dict[str, Any]) -> None:
    """Each rank writes the parameters it holds; the checkpoint reads as if one rank had written it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    names = [["a", "tied", "c"], ["b"]][rank]
    a = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": a, "tied": a, "b": torch.arange(4.0), "c": torch.tensor([7])}
    groups = [{"lr": 0.1, "params": ["a", "b"]}] if rank == 0 else []
    mine = TrainState(
        weights={name: tensors[name] for name in names} | ({"extra": {"seen": 3}} if rank == 0 else {}),
        optimizer={name: {"exp_avg": tensors[name] + 1} for name in names if name in "ab"},
        groups=groups,
        gradients={name: tensors[name] + 2 for name in names if name in "ab"},
        spread=True,
    )

    def describe(folder: str) -> None:
        Path(folder, "config.json").write_text("{}")

    contents = CheckpointContents(mine, trainer_state={"global_step": 3})
    save_checkpoint(folder, contents, save_model=describe, agree=agree, **together)
    assert validate(folder) is None
    found = sorted(os.listdir(folder))
    assert [name for name in found if name.startswith(("model", "optimizer", "gradients", "part"))] == [
        "gradients-1.safetensors",
        "gradients.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "model_extra.json",
        "optimizer-1.json",
        "optimizer-1.safetensors",
        "optimizer.json",
        "optimizer.safetensors",
    ]
    index = json.loads(Path(folder, "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 6 * 4 + 4 * 4 + 8
    assert index["weight_map"]["b"] == "model-00002-of-00002.safetensors"
    state = load_checkpoint(folder, rank, world).train_state
    assert state is not None
    assert state.weights.keys() == {"a", "tied", "b", "c", "extra"}
    assert all(torch.equal(state.weights[name], tensors[name]) for name in tensors)
    assert state.weights["extra"] == {"seen": 3}
    assert state.optimizer.keys() == state.gradients.keys() == {"a", "b"}
    assert torch.equal(state.optimizer["b"]["exp_avg"], tensors["b"] + 1)
    assert torch.equal(state.gradients["b"], tensors["b"] + 2)
    assert state.groups == [{"lr": 0.1, "params": ["a", "b"]}]


def main() -> None:
    output = sys.argv[1]
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    state = TrainState({"w": torch.arange(4.0)}) if rank == 0 else None
    together = {"rank": rank, "world_size": world, "barrier": dist.barrier}

    torch.manual_seed(100 + rank)
    folder = os.path.join(output, "checkpoint-1")
    os.makedirs(os.path.join(output, ".checkpoint-1.tmp-00000000"), exist_ok=True)  # of a killed run
    dist.barrier()
    save_checkpoint(folder, CheckpointContents(state, trainer_state={"global_step": 1}), **together)  # type: ignore[arg-type]
    assert validate(folder) is None
    drawn = torch.rand(3)
    contents = load_checkpoint(folder, rank, world)
    assert contents.world_size == world
    assert contents.random is not None
    contents.random.restore()
    assert torch.equal(torch.rand(3), drawn)
    assert torch.initial_seed() == 100 + rank
    dist.barrier()
    assert os.listdir(output) == ["checkpoint-1"]
    dist.barrier()

    def fails(folder: str) -> None:
        raise OSError(28, "No space left on device")

    refused = []
    for options in (together, {**together, "agree": agree}):
        try:
            folder = os.path.join(output, "checkpoint-2")
            save_checkpoint(
                folder,
                CheckpointContents(state, trainer_state={"global_step": 2}),
                save_model=fails,
                **options,
            )  # type: ignore[arg-type]
        except CheckpointError as error:
            refused.append(str(error))
        dist.barrier()
    assert len(refused) == 2, refused
    assert ("is full" in refused[1]) == (rank == 0), refused
    assert ("whose message says why" in refused[1]) == (rank != 0), refused
    assert os.listdir(output) == ["checkpoint-1"]
    dist.barrier()
    spread(os.path.join(output, "spread", "checkpoint-3"), together)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} done\n")


if __name__ == "__main__":
    main()
