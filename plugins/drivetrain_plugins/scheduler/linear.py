"""Down to 0 in a straight line."""

from __future__ import annotations

import torch

from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import NoOptions


class Linear(SchedulePlugin[NoOptions]):
    """`lr_scheduler_type="linear"`."""

    name = "linear"
    default_options = NoOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: NoOptions
    ) -> Multiplier:
        """The share of the updates after the warmup that remain."""
        length = float(max(1, total - warmup))
        return after_warmup(warmup, lambda update: max(0.0, (total - update) / length))
