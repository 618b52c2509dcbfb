"""Down with the inverse root of the update (Zhai et al., "Scaling Vision Transformers", 2022)."""

from __future__ import annotations

import math

import torch

from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import InverseSqrtOptions

# The time scale where there is neither a warmup nor an option; transformers 4.34.0 divides by zero there.
WITHOUT_WARMUP = 10_000


class InverseSqrt(SchedulePlugin[InverseSqrtOptions]):
    """`lr_scheduler_type="inverse_sqrt"`."""

    name = "inverse_sqrt"
    default_options = InverseSqrtOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: InverseSqrtOptions
    ) -> Multiplier:
        """sqrt(timescale / (updates since the warmup + timescale))."""
        timescale = options.timescale or warmup or WITHOUT_WARMUP
        return after_warmup(warmup, lambda update: 1.0 / math.sqrt((update - warmup + timescale) / timescale))
