"""What the built-in optimizers share: the class and arguments from the arguments, as a factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import torch

from drivetrain.own_optimizer import groups_of
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.optimizer.options import read_optim_args

Options = TypeVar("Options")


class OptimizerPlugin(Generic[Options]):
    """An optimizer of the documented parameter groups.

    A subclass names its `name` and `default_options`, and says its class and arguments.
    """

    name: ClassVar[str]
    default_options: ClassVar[Any]

    def __init__(self, options: Options | None = None) -> None:
        self.options: Options = self.default_options if options is None else options

    def class_and_kwargs(self, args: Any) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
        """The optimizer's class and keyword arguments by the arguments alone (`lr` among them)."""
        return self.cls_of(args), self.kwargs_of(args, read_optim_args(self.options, args, self.name))

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The optimizer's class."""
        raise NotImplementedError

    def kwargs_of(self, args: Any, options: Options) -> dict[str, Any]:
        """The optimizer's keyword arguments."""
        raise NotImplementedError

    @hookimpl
    def make_optimizer(self, run: Run) -> OptimizerFactory:
        """The factory; patterns of `param_groups` are tried on the run's model at once."""
        cls, kwargs = self.class_and_kwargs(run.args)
        return OptimizerFactory(cls=cls, kwargs=kwargs, groups=groups_of(run.args, cls, check_with=run.model))


def adam_kwargs(args: Any) -> dict[str, Any]:
    """Learning rate, betas and epsilon from the documented arguments."""
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
