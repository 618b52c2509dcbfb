"""Down by a factor when evaluations no longer improve."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import SchedulerFactory
from drivetrain_plugins.scheduler.options import PlateauOptions, read_kwargs


class ReduceLROnPlateauPlugin:
    """`lr_scheduler_type="reduce_lr_on_plateau"`: torch's, stepped with the metric after each evaluation."""

    name: ClassVar[str] = "reduce_lr_on_plateau"

    def __init__(self, options: PlateauOptions | None = None) -> None:
        self.options = options or PlateauOptions()

    @hookimpl
    def make_scheduler(self, run: Run) -> SchedulerFactory:
        """The factory."""
        options = dataclasses.asdict(read_kwargs(self.options, run.args, self.name))

        def make(optimizer: torch.optim.Optimizer, num_training_steps: int) -> Any:
            return ReduceLROnPlateau(optimizer, **options)

        return SchedulerFactory(make=make, num_training_steps=run.state.max_steps, per_evaluation=True)
