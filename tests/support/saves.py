"""Small checkpoints that know their own contents: what those tests write that kill or hinder a save."""

from __future__ import annotations

import os

import torch

from drivetrain.checkpoint import CheckpointContents, rotate, save_checkpoint
from drivetrain.slots import TrainState


def save(output: str, step: int, mark: float, size: int = 2000) -> None:
    """Writes `checkpoint-STEP`, in which every number is the mark."""
    state = TrainState(
        {"weight": torch.full((size,), mark), "other": torch.full((3,), mark)},
        {"weight": {"exp_avg": torch.full((size,), mark), "step": torch.tensor(float(step))}},
        [{"lr": 0.1, "params": ["weight", "other"]}],
    )
    contents = CheckpointContents(
        state, {"last_epoch": step}, trainer_state={"global_step": step}, extra={"mark": mark}
    )
    save_checkpoint(os.path.join(output, f"checkpoint-{step}"), contents)


def new_and_rotate(output: str) -> None:
    """A third checkpoint beside two; the best of them and the latest stay."""
    save(output, 3, 3.0)
    rotate(output, 2, best=os.path.join(output, "checkpoint-1"), latest=os.path.join(output, "checkpoint-3"))


def replace(output: str) -> None:
    """A checkpoint in the place of one of the same name."""
    save(output, 2, 20.0)
