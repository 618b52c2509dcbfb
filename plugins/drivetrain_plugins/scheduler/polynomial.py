"""Down to an end value along a power of what remains."""

from __future__ import annotations

import torch

from drivetrain.errors import ConfigurationError
from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import PolynomialOptions


class Polynomial(SchedulePlugin[PolynomialOptions]):
    """`lr_scheduler_type="polynomial"`."""

    name = "polynomial"
    default_options = PolynomialOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: PolynomialOptions
    ) -> Multiplier:
        """(lr - end) · (share that remains)^power + end, over lr.

        Raises:
            ConfigurationError: the end value is not below the learning rate.
        """
        top, end, power = float(optimizer.defaults["lr"]), options.lr_end, options.power
        if not top > end:
            raise ConfigurationError(
                f"Scheduler 'polynomial': lr_end={end} must be below the learning rate {top}; lower it."
            )
        length = max(1, total - warmup)

        def then(update: int) -> float:
            if update > total:
                return end / top
            remaining = 1.0 - (update - warmup) / length
            return float(((top - end) * remaining**power + end) / top)

        return after_warmup(warmup, then)
