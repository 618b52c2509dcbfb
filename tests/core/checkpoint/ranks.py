"""Two processes that save and load together. Run by test_ranks.py under torch.distributed."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

from drivetrain.checkpoint import CheckpointContents, load_checkpoint, save_checkpoint, validate
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState


def agree(ok: bool) -> bool:
    flag = torch.tensor(int(ok))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


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
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} done\n")


if __name__ == "__main__":
    main()
