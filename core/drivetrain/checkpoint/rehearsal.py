"""Trying out what a checkpoint gives an optimizer or a scheduler, on copies, before training goes on with it.

Both take whatever they are given, keep it, and fail at the first update, or later, where a number is a string or a
tensor is missing. So one update is tried, with gradients of 0, of one parameter of each kind; the kinds are few.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from drivetrain.checkpoint.tensors import reason_of
from drivetrain.errors import CheckpointError
from drivetrain.parameters import group_options

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_LARGE = 2**31


@dataclass(frozen=True, slots=True)
class Before:
    """What an optimizer was before it was given a checkpoint's state: the state of each parameter, and the groups."""

    state: dict[Any, Any]
    groups: list[dict[str, Any]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Before:
        """As it is now."""
        state = {parameter: dict(entry) for parameter, entry in optimizer.state.items()}
        return cls(state, [dict(group) for group in optimizer.param_groups])


def rehearse_update(optimizer: torch.optim.Optimizer, before: Before) -> None:
    """Tries an update with the state that an optimizer has been given, on another one of its class.

    With several processes only optimizers whose step concerns nobody else are tried: torch's own, and those that say
    so by `steps_alone = True`; `steps_alone = False` is never tried. One that could not make this step before either,
    or of which no other can be made, is left alone.

    Args:
        optimizer: as it is now; it is not changed.
        before: what it was.

    Raises:
        CheckpointError: the update fails.
    """
    kind = type(optimizer)
    of_torch = kind.__module__.startswith("torch.optim.")
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not getattr(kind, "steps_alone", of_torch or not several):
        return
    step = _step_of_torch if of_torch else _step_of_another
    tried: set[Any] = set()
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            signature = number, parameter.dtype, parameter.dim(), _signature(state, parameter)
            if type(parameter) not in _PLAIN or parameter.is_meta or signature in tried:
                continue
            tried.add(signature)
            try:
                copied, copied_before = _clone(state), _clone(before.state.get(parameter, {}))
            except Exception:
                continue  # of a kind that has no copies
            try:
                step(optimizer, group, parameter, copied)
            except Exception as error:
                if _works(step, optimizer, before.groups[number], parameter, copied_before):
                    raise CheckpointError(
                        f"{kind.__name__} cannot go on with the optimizer state of the checkpoint "
                        f"({type(error).__name__}: {reason_of(error)}); resume from an earlier checkpoint."
                    ) from error


def _signature(value: Any, parameter: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, "whole" if value.shape == parameter.shape else value.dim(), value.numel() == 1
    if isinstance(value, dict):
        return tuple((str(key), _signature(item, parameter)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_signature(item, parameter) for item in value)
    large = isinstance(value, (int, float)) and not -_LARGE < value < _LARGE
    return type(value), large


def _copy(parameter: torch.Tensor) -> torch.nn.Parameter:
    copied = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    copied.grad = torch.zeros_like(copied)
    return copied


def _step_of_torch(optimizer: Any, group: dict[str, Any], parameter: torch.Tensor, state: Any) -> None:
    """A step of the optimizer's class with a copy of one parameter, a state of it and its group's options."""
    copied = _copy(parameter)
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__ = {**optimizer.__dict__, "defaults": dict(optimizer.defaults)}
    stand_in.param_groups = [{**{key: _clone(value) for key, value in group.items() if key != "params"}}]
    stand_in.param_groups[0]["params"] = [copied]
    stand_in.state = defaultdict(dict)
    if state:
        stand_in.state[copied] = state
    step: Callable[[Any], Any] = type(optimizer).step
    # torch wraps the step of a class, to call hooks and to write profiles: this one is for nobody to see.
    getattr(step, "__wrapped__", step)(stand_in)


def _step_of_another(optimizer: Any, group: dict[str, Any], parameter: torch.Tensor, state: Any) -> None:
    """The same for a class that may keep more than groups and state: one is made by its constructor."""
    known = group_options(type(optimizer))
    copied = _copy(parameter)
    options = {key: _clone(value) for key, value in group.items() if key != "params"}
    defaults = {key: value for key, value in optimizer.defaults.items() if known is None or key in known}
    made = type(optimizer)([{**options, "params": [copied]}], **defaults)
    made.param_groups[0].update(options)
    if state:
        made.state[copied].update(state)
    if callable(train := getattr(made, "train", None)):
        train()  # a checkpoint is written with the weights for evaluation
    made.step()


def _clone(value: Any) -> Any:
    if type(value) is dict:
        return {key: _clone(item) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if hasattr(value, "__tensor_flatten__"):  # a tensor that is made of others, which may know no clone
        kind: Any = type(value)
        names, about = value.__tensor_flatten__()
        parts = {name: getattr(value, name).clone() for name in names}
        return kind.__tensor_unflatten__(parts, about, value.shape, value.stride())
    return value.detach().clone()


def _works(tried: Callable[..., Any], *args: Any) -> bool:
    try:
        tried(*args)
    except Exception:
        return False
    return True


def rehearse_schedule(scheduler: Any, saved: dict[str, Any], metric: bool) -> None:
    """Tries whether a scheduler of torch's kind takes a state and can make its next step.

    Args:
        scheduler: as it is now; it is not changed.
        saved: the state.
        metric: whether its step takes a metric.

    Raises:
        CheckpointError: it fails.
    """

    def goes_on(state: dict[str, Any] | None) -> None:
        stand_in = _scheduler_like(scheduler)
        if state is not None:
            stand_in.load_state_dict(copy.deepcopy(state))
        stand_in.step(*(1.0,) if metric else ())
        rates = [float(rate) for rate in stand_in.get_last_lr()]
        if len(rates) != len(scheduler.optimizer.param_groups):
            raise ValueError(f"it has {len(rates)} learning rates")

    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler) or not _works(goes_on, None):
        return
    try:
        goes_on(saved)
    except Exception as error:
        raise CheckpointError(
            f"{type(scheduler).__name__} cannot go on with the scheduler state of the checkpoint "
            f"({type(error).__name__}: {reason_of(error)}); resume from an earlier checkpoint."
        ) from error


def _scheduler_like(scheduler: Any) -> Any:
    """A copy that sets the learning rates of nobody."""
    optimizer = scheduler.optimizer
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__ = dict(optimizer.__dict__)
    stand_in.param_groups = [
        {key: _clone(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return copy.deepcopy(scheduler, {id(optimizer): stand_in})
