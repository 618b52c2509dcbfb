"""Two processes that save and load together. Run by test_ranks.py under torch.distributed."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from drivetrain.checkpoint import (
    CheckpointContents,
    RandomState,
    alike,
    load_checkpoint,
    save_checkpoint,
    save_spread,
    validate,
)
from drivetrain.errors import CheckpointError, ProcessError
from drivetrain.slots import TrainState


def exchange(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def spread(folder: str) -> None:
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

    _, *others = exchange(RandomState.capture())
    contents = CheckpointContents(mine, others=others, trainer_state={"global_step": 3})
    save_spread(folder, contents, rank=rank, exchange=exchange, save_model=describe)
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
    dist.barrier()

    # What fails on one rank, wherever it is, is an error on both; what stood there stands.
    whole = found
    for culprit in (0, 1):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == culprit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(CheckpointError, match="limits the size of files") as refused:
            save_spread(folder, contents, rank=rank, exchange=exchange)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(refused.value).startswith(f"Rank {culprit}: ") == (rank != culprit)
        dist.barrier()
        assert sorted(os.listdir(folder)) == whole
        assert os.listdir(os.path.dirname(folder)) == ["checkpoint-3"]
        dist.barrier()

    def breaks(folder: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(
        ZeroDivisionError if rank == 0 else ProcessError
    ):  # not of the disk: nobody goes on after it
        save_spread(folder, contents, rank=rank, exchange=exchange, save_model=breaks)
    dist.barrier()

    def blind(value: Any) -> list[Any]:
        """As on machines that share no disk: what rank 0 has made is nowhere to be found."""
        told = exchange(value)
        failure, said = told[0]
        return [(failure, said and ("elsewhere" * rank + said[0], said[1])), *told[1:]]

    with pytest.raises(CheckpointError, match="does not see"):
        save_spread(folder, contents, rank=rank, exchange=blind)


def main() -> None:
    output = sys.argv[1]
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    state = TrainState({"w": torch.arange(4.0)})

    torch.manual_seed(100 + rank)
    folder = os.path.join(output, "checkpoint-1")
    os.makedirs(os.path.join(output, ".checkpoint-1.tmp-00000000"), exist_ok=True)  # of a killed run
    dist.barrier()
    first, *others = exchange(RandomState.capture())
    contents = CheckpointContents(state, random=first, others=others, trainer_state={"global_step": 1})
    with alike(exchange):
        if rank == 0:
            save_checkpoint(folder, contents)
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

    def second() -> None:
        with alike(exchange):
            if rank == 0:
                save_checkpoint(
                    os.path.join(output, "checkpoint-2"), CheckpointContents(state), save_model=fails
                )

    with pytest.raises(CheckpointError, match="is full") as refused:
        second()
    assert str(refused.value).startswith("Rank 0: ") == (rank != 0)
    dist.barrier()
    assert os.listdir(output) == ["checkpoint-1"]
    dist.barrier()
    spread(os.path.join(output, "spread", "checkpoint-3"))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} done\n")


if __name__ == "__main__":
    main()
