"""FairScale's OSS from an optimizer's class and groups, also those of an optimizer that is built already."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairscale.optim import OSS
from torch import Tensor

from drivetrain.element_wise import spoken
from drivetrain.errors import ConfigurationError
from drivetrain.evaluation_weights import trains_others
from drivetrain.slots import Group, Model, OptimizerFactory

OWN_OPTIONS = "_drivetrain_own_options"
"""Attribute of an OSS: of each group the options that its optimizer knows, without those that OSS has filled in."""


class Placeholder(torch.nn.Parameter):
    """An empty parameter: OSS asks its first group for a device, and the group may be empty."""


def build_oss(factory: OptimizerFactory, model: Model) -> Any:
    """An OSS over the factory's class and groups.

    A finished optimizer gives its class, its options, its groups (the very dicts, so that a scheduler built on it
    goes on ruling them) and the state of the parameters that this rank owns.

    Raises:
        ConfigurationError: the finished optimizer cannot be built again, its parameters have several dtypes, or it
            keeps other weights for evaluation.
    """
    cls: Any = factory.cls if factory.finished is None else type(factory.finished)
    if trains_others(cls):
        raise ConfigurationError(
            f"The optimizer {spoken(cls)} keeps other weights for evaluation, which strategy 'fairscale' with "
            "sharded_ddp='simple' cannot swap: use strategy='ddp', or strategy='fsdp'."
        )
    own: list[set[str]] | None = None
    if factory.finished is None:
        cls, kwargs = factory.cls, dict(factory.kwargs)
        # Built once by itself, since it fills in its groups what it sees fit, where OSS would fill in all alike.
        groups = factory.build(model).param_groups
        state: Any = {}
    else:
        finished: Any = factory.finished
        groups = finished.param_groups
        own = getattr(finished, OWN_OPTIONS, own)
        if isinstance(finished, OSS):  # of an earlier train()
            finished = finished.optim
        cls, kwargs, state = type(finished), arguments_of(finished), finished.state
    groups = [
        {**group, "params": real(group["params"])} if _has_placeholder(group) else group for group in groups
    ]
    _one_dtype(groups)
    if groups and not list(groups[0]["params"]):
        device = next(model.parameters()).device
        groups[0] = {**groups[0], "params": [Placeholder(torch.empty(0, device=device), requires_grad=False)]}
    own = own or [set(group) for group in groups]
    oss: Any = OSS(groups, optim=cls, **kwargs)
    setattr(oss, OWN_OPTIONS, own)
    oss.defaults = {**oss.optim.defaults, **oss.defaults}
    for group in oss.optim.param_groups:
        for parameter in group["params"]:
            if parameter in state:
                oss.optim.state[parameter] = state[parameter]
    return oss


def real(params: Iterable[Tensor]) -> list[Tensor]:
    """Those that are parameters of the model."""
    return [parameter for parameter in params if not isinstance(parameter, Placeholder)]


def _has_placeholder(group: Group) -> bool:
    return any(isinstance(parameter, Placeholder) for parameter in group["params"])


def arguments_of(finished: torch.optim.Optimizer) -> dict[str, Any]:
    """The keyword arguments that make another one like this.

    Raises:
        ConfigurationError: an argument of the class is not among the optimizer's defaults.
    """
    cls: Callable[..., Any] = type(finished)
    wanted = list(inspect.signature(cls).parameters.values())[1:]
    named = [found for found in wanted if found.kind not in (found.VAR_KEYWORD, found.VAR_POSITIONAL)]
    unknown = [found.name for found in named if found.name not in finished.defaults]
    if unknown:
        raise ConfigurationError(
            f"Strategy 'fairscale' must build the optimizer anew over its shards, and a finished "
            f"{type(finished).__name__} does not tell its {unknown[0]!r}: hand in the class by optim, with optim_args, "
            "instead."
        )
    return {found.name: finished.defaults[found.name] for found in named}


def _one_dtype(groups: list[Group]) -> None:
    """OSS lays the trained parameters of a rank into one buffer, and so they must be of one kind."""
    trained = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    dtypes = sorted({str(parameter.dtype) for parameter in trained})
    if len(dtypes) > 1:
        raise ConfigurationError(
            f"Strategy 'fairscale' with sharded_ddp='simple' trains parameters of one dtype, and this model has "
            f"{' and '.join(dtypes)}: cast it to one of them, or use strategy='ddp'."
        )
