"""Along a cosine (Loshchilov and Hutter, "SGDR", 2017): once, with restarts, or to a least value."""

from __future__ import annotations

import math

import torch

from drivetrain.errors import ConfigurationError
from drivetrain_plugins.scheduler.multiplier import Multiplier, SchedulePlugin, after_warmup
from drivetrain_plugins.scheduler.options import (
    CosineOptions,
    CosineWithMinLROptions,
    CosineWithRestartsOptions,
)


def wave(progress: float, num_cycles: float) -> float:
    """A cosine between 1 and 0 that has made `num_cycles` waves at progress 1."""
    return 0.5 * (1.0 + math.cos(2.0 * math.pi * num_cycles * progress))


class Cosine(SchedulePlugin[CosineOptions]):
    """`lr_scheduler_type="cosine"`."""

    name = "cosine"
    default_options = CosineOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: CosineOptions
    ) -> Multiplier:
        """Half a wave, or as many as the options say."""
        length, cycles = float(max(1, total - warmup)), options.num_cycles
        return after_warmup(warmup, lambda update: max(0.0, wave((update - warmup) / length, cycles)))


class CosineWithRestarts(SchedulePlugin[CosineWithRestartsOptions]):
    """`lr_scheduler_type="cosine_with_restarts"`."""

    name = "cosine_with_restarts"
    default_options = CosineWithRestartsOptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: CosineWithRestartsOptions
    ) -> Multiplier:
        """Half waves, each from 1; 0 after the last."""
        length, cycles = float(max(1, total - warmup)), options.num_cycles

        def then(update: int) -> float:
            progress = (update - warmup) / length
            if progress >= 1.0:
                return 0.0
            return max(0.0, wave((cycles * progress) % 1.0, 0.5))

        return after_warmup(warmup, then)


class CosineWithMinLR(SchedulePlugin[CosineWithMinLROptions]):
    """`lr_scheduler_type="cosine_with_min_lr"`."""

    name = "cosine_with_min_lr"
    default_options = CosineWithMinLROptions()

    def multiplier(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: CosineWithMinLROptions
    ) -> Multiplier:
        """The cosine, squeezed between 1 and the least value.

        Raises:
            ConfigurationError: no least value is given, or one above the learning rate.
        """
        least = options.min_lr_rate
        if options.min_lr is not None:
            learning_rate = float(optimizer.defaults["lr"])
            if options.min_lr > learning_rate:
                raise ConfigurationError(
                    f"Scheduler 'cosine_with_min_lr': min_lr={options.min_lr} is above the learning rate "
                    f"{learning_rate}; lower it."
                )
            least = options.min_lr / learning_rate if learning_rate else 0.0
        if least is None:
            raise ConfigurationError(
                "Scheduler 'cosine_with_min_lr' needs a least value: "
                "lr_scheduler_kwargs={'min_lr': 1e-6}, or {'min_lr_rate': 0.1}."
            )
        floor, length, cycles = least, float(max(1, total - warmup)), options.num_cycles

        def then(update: int) -> float:
            return max(0.0, wave((update - warmup) / length, cycles) * (1.0 - floor) + floor)

        return after_warmup(warmup, then)
