"""A stated multiple of the learning rate in each stretch of the run."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import torch

from drivetrain.errors import ConfigurationError
from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import PiecewiseOptions


class Piecewise(SchedulePlugin[PiecewiseOptions]):
    """`lr_scheduler_type="piecewise"`.

    With boundaries (100, 200) and values (1, 0.5, 0.1) updates 0 to 99 run at the learning rate, 100 to 199
    at half of it, and the rest at a tenth.
    """

    name = "piecewise"
    default_options = PiecewiseOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: PiecewiseOptions
    ) -> Multiplier:
        """The value of the stretch; the warmup's line is multiplied by it.

        Raises:
            ConfigurationError: boundaries that do not rise, once shares are updates.
        """
        boundaries = [round(b * total) if b < 1 else int(b) for b in options.boundaries]
        if any(later <= earlier for earlier, later in pairwise(boundaries)):
            raise ConfigurationError(
                f"Scheduler 'piecewise': boundaries must rise, and in updates, of {total}, are {boundaries}."
            )
        values = options.values

        def value(update: int) -> float:
            return values[bisect_right(boundaries, update)]

        rise = after_warmup(warmup, lambda update: 1.0)
        return lambda update: rise(update) * value(update)
