"""Runs that are stopped at each of their checkpoints and resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.toy import history, weights_equal


def disturb() -> None:
    """Another process has other random states."""
    torch.manual_seed(999)
    np.random.seed(999)
    random.seed(999)


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def resumed_from_everywhere(folder: Path, build: Callable[[Path], Any], most: int = 6) -> None:
    """Trains, and again from each of the first checkpoints but the last one, and compares what comes out.

    Args:
        folder: for the runs.
        build: makes the trainer of a run in a folder.
        most: checkpoints that are resumed.
    """
    whole = build(folder / "whole")
    whole.train()
    drawn = torch.get_rng_state()
    checkpoints = checkpoints_of(folder / "whole")
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints[:-1][:most]:
        again = build(folder / f"again-{checkpoint.name}")
        again.args.save_strategy = type(again.args.save_strategy)("no")
        disturb()
        again.train(resume_from_checkpoint=str(checkpoint))
        assert history(again) == history(whole), checkpoint.name
        assert again.state.global_step == whole.state.global_step, checkpoint.name
        assert weights_equal(again.model, whole.model), checkpoint.name
        assert torch.equal(torch.get_rng_state(), drawn), checkpoint.name
