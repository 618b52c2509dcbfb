"""Schedule-free AdamW, SGD and RAdam, of the package schedulefree.

They average the weights themselves (Defazio et al., "The Road Less Scheduled", 2024), so that no schedule has to know
when the run ends: x is the average, which is evaluated and saved; the gradient is taken at y, between x and the weights
z of the inner optimizer. `drivetrain.evaluation_weights` puts x and y in each other's place.

Who warms up: the scheduler, where it is one that does. Under `constant` and `reduce_lr_on_plateau`, which do not, the
optimizer does, by `warmup_steps` or `warmup_ratio`. Never both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import (
    ScheduleFreeOptions,
    ScheduleFreeRAdamOptions,
    ScheduleFreeSGDOptions,
)

logger = logging.getLogger("drivetrain")

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")
"""Schedulers that leave the warmup out."""


class _ScheduleFree(OptimizerPlugin[Any]):
    warms_up = True

    def common(self, args: Any, options: ScheduleFreeOptions) -> dict[str, Any]:
        """What the three have in common."""
        found = {"lr": args.learning_rate, "r": options.r, "weight_lr_power": options.weight_lr_power}
        if self.warms_up and _scheduler(args) in WITHOUT_WARMUP:
            found["warmup_steps"] = args.warmup_steps
        return found

    @hookimpl
    def make_optimizer(self, run: Run) -> OptimizerFactory:
        """The factory, with the warmup of the run; says where a schedule brings the rate down all the same."""
        factory = super().make_optimizer(run)
        args: Any = run.args
        if "warmup_steps" in factory.kwargs:
            factory.kwargs["warmup_steps"] = args.get_warmup_steps(run.state.max_steps)
        if not args.is_set("lr_scheduler_type") and run.is_training and run.is_main_process:
            logger.warning(
                "optim=%r needs no schedule, and lr_scheduler_type is %r by default, which brings the learning rate "
                "down: set lr_scheduler_type='constant', under which warmup_steps are the optimizer's.",
                self.name,
                _scheduler(args),
            )
        return factory


def _scheduler(args: Any) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


class ScheduleFreeAdamW(_ScheduleFree):
    """`optim="schedule_free_adamw"`."""

    name = "schedule_free_adamw"
    default_options = ScheduleFreeOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The package's class."""
        from schedulefree import AdamWScheduleFree

        cls: Callable[..., torch.optim.Optimizer] = AdamWScheduleFree
        return cls

    def kwargs_of(self, args: Any, options: ScheduleFreeOptions) -> dict[str, Any]:
        """Adam's arguments, the options, and the warmup."""
        return {**adam_kwargs(args), **self.common(args, options)}


class ScheduleFreeSGD(_ScheduleFree):
    """`optim="schedule_free_sgd"`."""

    name = "schedule_free_sgd"
    default_options = ScheduleFreeSGDOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The package's class."""
        from schedulefree import SGDScheduleFree

        cls: Callable[..., torch.optim.Optimizer] = SGDScheduleFree
        return cls

    def kwargs_of(self, args: Any, options: ScheduleFreeSGDOptions) -> dict[str, Any]:
        """The options, and the warmup."""
        return {**self.common(args, options), "momentum": options.momentum}


class ScheduleFreeRAdam(_ScheduleFree):
    """`optim="schedule_free_radam"`, which has a warmup in its formula and takes none from outside."""

    name = "schedule_free_radam"
    default_options = ScheduleFreeRAdamOptions()
    warms_up = False

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The package's class."""
        from schedulefree import RAdamScheduleFree

        cls: Callable[..., torch.optim.Optimizer] = RAdamScheduleFree
        return cls

    def kwargs_of(self, args: Any, options: ScheduleFreeRAdamOptions) -> dict[str, Any]:
        """Adam's arguments and the options."""
        return {
            **adam_kwargs(args),
            **self.common(args, options),
            "silent_sgd_phase": options.silent_sgd_phase,
        }
