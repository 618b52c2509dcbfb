"""Down by the same factor at every update."""

from __future__ import annotations

import torch

from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import ExponentialOptions


class Exponential(SchedulePlugin[ExponentialOptions]):
    """`lr_scheduler_type="exponential"`."""

    name = "exponential"
    default_options = ExponentialOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: ExponentialOptions
    ) -> Multiplier:
        """gamma^(updates since the warmup)."""
        gamma = options.gamma
        base = options.end ** (1.0 / max(1, total - warmup)) if gamma is None else gamma
        return after_warmup(warmup, lambda update: float(base ** (update - warmup)))
