"""Up, along the top, and down (Hu et al., "MiniCPM", 2024)."""

from __future__ import annotations

import math

import torch

from drivetrain.errors import ConfigurationError
from drivetrain_plugins.scheduler.cosine import wave
from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin
from drivetrain_plugins.scheduler.options import WarmupStableDecayOptions


def rising(progress: float, curve: str) -> float:
    """From 0 to 1."""
    if curve == "linear":
        return progress
    if curve == "cosine":
        return 1.0 - wave(progress, 0.5)
    return 1.0 - math.sqrt(1.0 - progress)


def falling(progress: float, curve: str, num_cycles: float) -> float:
    """From 1 to 0."""
    if curve == "linear":
        return 1.0 - progress
    if curve == "cosine":
        return wave(progress, num_cycles)
    return 1.0 - math.sqrt(progress)


class WarmupStableDecay(SchedulePlugin[WarmupStableDecayOptions]):
    """`lr_scheduler_type="warmup_stable_decay"`."""

    name = "warmup_stable_decay"
    default_options = WarmupStableDecayOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: WarmupStableDecayOptions
    ) -> Multiplier:
        """Up from the least value, 1, down to the least value.

        Raises:
            ConfigurationError: warmup and decay are longer than the run.
        """
        decay = options.num_decay_steps
        decay = round(decay * total) if decay < 1 else int(decay)
        stable = options.num_stable_steps
        if stable is None:
            stable = total - warmup - decay
        if stable < 0:
            raise ConfigurationError(
                f"Scheduler 'warmup_stable_decay': {warmup} updates of warmup and {decay} of decay are more "
                f"than the run's {total}; lower num_decay_steps."
            )
        least, begin = options.min_lr_ratio, warmup + stable
        up, down, cycles = options.warmup_type, options.decay_type, options.num_cycles

        def multiple(update: int) -> float:
            if update < warmup:
                factor = rising(update / warmup, up)
            elif update < begin:
                return 1.0
            elif update < begin + decay:
                factor = falling((update - begin) / decay, down, cycles)
            else:
                return least
            return max(0.0, factor * (1.0 - least) + least)

        return multiple
