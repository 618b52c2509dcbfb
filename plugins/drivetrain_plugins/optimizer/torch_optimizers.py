"""torch's SGD, Adagrad and RMSprop. Options that stand at their default are left to torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from drivetrain_plugins.optimizer.base import OptimizerPlugin
from drivetrain_plugins.optimizer.options import AdagradOptions, RMSpropOptions, SGDOptions


class _Torch(OptimizerPlugin[Any]):
    torch_class: ClassVar[type[torch.optim.Optimizer]]

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The class of torch."""
        return self.torch_class

    def kwargs_of(self, args: Any, options: Any) -> dict[str, Any]:
        """The learning rate, and the options that were changed; weight decay comes with the groups."""
        changed = {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if getattr(options, field.name) != field.default
        }
        return {"lr": args.learning_rate, **changed}


class SGD(_Torch):
    """`optim="sgd"`."""

    name = "sgd"
    default_options = SGDOptions()
    torch_class = torch.optim.SGD


class Adagrad(_Torch):
    """`optim="adagrad"`."""

    name = "adagrad"
    default_options = AdagradOptions()
    torch_class = torch.optim.Adagrad


class RMSprop(_Torch):
    """`optim="rmsprop"`."""

    name = "rmsprop"
    default_options = RMSpropOptions()
    torch_class = torch.optim.RMSprop
