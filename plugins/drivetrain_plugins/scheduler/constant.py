"""The learning rate as it is, with and without warmup."""

from __future__ import annotations

import torch

from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import NoOptions


def _one(update: int) -> float:
    return 1.0


class Constant(SchedulePlugin[NoOptions]):
    """`lr_scheduler_type="constant"`: no warmup either, by its documentation."""

    name = "constant"
    default_options = NoOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: NoOptions
    ) -> Multiplier:
        """Always 1."""
        return _one


class ConstantWithWarmup(SchedulePlugin[NoOptions]):
    """`lr_scheduler_type="constant_with_warmup"`."""

    name = "constant_with_warmup"
    default_options = NoOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: NoOptions
    ) -> Multiplier:
        """Up to 1, then 1."""
        return after_warmup(warmup, _one)
