"""An optimizer's state by parameter name, for optimizers that hold whole parameters.

torch numbers the parameters of an optimizer in the order of its groups. Names do not change when somebody
freezes a layer or reorders the groups, and they are the same under every strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from drivetrain.checkpoint.rehearsal import Before, rehearse_update
from drivetrain.checkpoint.tensors import reason_of
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState

OptimizerOut = tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]

NOT_OF_PARAMETERS = "state_not_of_parameters"
"""Key of the extra part under which entries of `state` that belong to no parameter are kept."""

HOW_NOT_WHAT = ("foreach", "fused", "capturable")
"""Group options that say how an update is computed. They stay those of the optimizer at hand."""


def name_parameters(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]]
) -> list[list[str]]:
    """The names of the parameters of each group, in the optimizer's order.

    Strategies call this when they are prepared, so that what could not be saved is known before the first
    step.

    Args:
        optimizer: its groups hold the very tensors of `named_parameters`.
        named_parameters: those of the bare model; of a tied parameter the first name counts.

    Raises:
        CheckpointError: the optimizer holds a parameter that has no name, or holds one twice.
    """
    return names_of(optimizer.param_groups, named_parameters)


def names_of(
    param_groups: Iterable[Mapping[str, Any]], named_parameters: Iterable[tuple[str, torch.Tensor]]
) -> list[list[str]]:
    """The names of the parameters of each group; see `name_parameters`."""
    names: dict[int, str] = {}
    for name, parameter in named_parameters:
        names.setdefault(id(parameter), name)
    groups: list[list[str]] = []
    where: dict[str, int] = {}
    for number, group in enumerate(param_groups):
        groups.append([])
        for position, parameter in enumerate(group["params"]):
            found = names.get(id(parameter))
            if found is None:
                raise CheckpointError(
                    f"The optimizer's group {number} holds at position {position} a tensor of shape "
                    f"{tuple(parameter.shape)} that is not a parameter of the model, so it has no name to be "
                    "saved under; make it a parameter of the model."
                )
            if found in where:
                raise CheckpointError(
                    f"The optimizer holds the parameter {found!r} twice, in group {where[found]} and in "
                    f"group {number}; give it to one group."
                )
            where[found] = number
            groups[-1].append(found)
    return groups


def optimizer_state_out(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]],
    *,
    copy_tensors: bool = False,
) -> OptimizerOut:
    """The state by name, the groups with the names of their parameters, and all else in the state_dict.

    Args:
        optimizer: of whole parameters.
        named_parameters: those of the bare model.
        copy_tensors: copy tensors that are on the CPU already, for a state that must not change with the
            optimizer (a restart from memory). Without it they are the optimizer's own.

    Raises:
        CheckpointError: as `name_parameters`.
    """
    names = name_parameters(optimizer, named_parameters)
    saved = optimizer.state_dict()
    by_index: dict[Any, str] = {}
    groups: list[dict[str, Any]] = []
    for group, of_group in zip(saved["param_groups"], names, strict=True):
        by_index.update(zip(group["params"], of_group, strict=True))
        options = {key: _to_host(value, True) for key, value in group.items() if key != "params"}
        groups.append({**options, "params": list(of_group)})
    state: dict[str, dict[str, Any]] = {}
    strangers: dict[Any, Any] = {}
    for index, entry in saved["state"].items():
        if index in by_index:
            state[by_index[index]] = _to_host(entry, copy_tensors)
        else:
            strangers[index] = _to_host(entry, copy_tensors)
    extra = {key: value for key, value in saved.items() if key not in ("state", "param_groups")}
    extra = _to_host(extra, copy_tensors)
    if strangers:
        extra[NOT_OF_PARAMETERS] = strangers
    return state, groups, extra


def optimizer_state_in(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]],
    saved: TrainState,
    *,
    rehearse: bool = True,
) -> None:
    """Sets an optimizer's state from the canonical form, through its own `load_state_dict`.

    Dtypes and devices follow torch: floating-point state takes the dtype and the device of its parameter,
    and `step` stays as it is unless the optimizer wants it on the device. With one difference: where the
    parameter has the dtype that it was saved with, so has its state, since an optimizer that keeps float32
    state of bfloat16 parameters would otherwise lose half of its digits at each resume. Tensors are copied,
    and take the strides of their parameter, which fused kernels rely on.

    Args:
        optimizer: its groups hold the very tensors of `named_parameters`.
        named_parameters: those of the bare model.
        saved: `optimizer`, `groups` and `optimizer_extra` are read, and the dtypes of `weights`.
        rehearse: try an update with it; not where the caller has yet to change something.

    Raises:
        CheckpointError: the groups or the names differ.
    """
    live = dict(_first_names(named_parameters))
    names = name_parameters(optimizer, live.items())
    _compare(names, [group["params"] for group in saved.groups])
    index = {name: number for number, name in enumerate(name for group in names for name in group)}
    state: dict[Any, Any] = {}
    for name, entry in saved.optimizer.items():
        if name not in index:
            raise CheckpointError(
                f"The checkpoint has optimizer state of {name!r}, which is in none of its groups."
            )
        state[index[name]] = _like(live[name], copy.copy(entry), name)
    groups = []
    for group, stored, of_group in zip(optimizer.param_groups, saved.groups, names, strict=True):
        foreign = stored.keys() - group.keys() - {"initial_lr"}
        lacking = sorted(group.keys() - stored.keys() - set(HOW_NOT_WHAT))
        if foreign and lacking:  # an older torch's optimizer lacks options too, but has none of its own
            raise CheckpointError(
                f"The checkpoint was written by another optimizer than {type(optimizer).__name__}: it has no "
                f"{lacking[0]!r}; resume with the optimizer that its run.json names."
            )
        options = {key: _option(value, group.get(key)) for key, value in stored.items() if key != "params"}
        options.update({key: group[key] for key in HOW_NOT_WHAT if key in group})
        groups.append({**options, "params": [index[name] for name in of_group]})
    extra = copy.deepcopy(saved.optimizer_extra)
    strangers = extra.pop(NOT_OF_PARAMETERS, {})
    if not isinstance(strangers, dict) or state.keys() & strangers.keys():
        raise CheckpointError(
            "The checkpoint's optimizer state that is of no parameter is not what it was; resume from an earlier "
            "checkpoint."
        )
    state.update(strangers)
    before = Before.of(optimizer)
    try:
        optimizer.load_state_dict({**extra, "state": state, "param_groups": groups})
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{type(optimizer).__name__} refuses the optimizer state of the checkpoint ({reason_of(error)}); resume "
            "with the optimizer that its run.json names."
        ) from error
    for name, number in index.items():
        weight = saved.weights.get(name)
        if number in state and weight is not None and weight.dtype == live[name].dtype:
            _keep_dtypes(optimizer.state[live[name]], state[number])
    if rehearse:
        rehearse_update(optimizer, before)


def _first_names(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter


def _compare(live: list[list[str]], saved: list[list[str]]) -> None:
    of_live = {name: number for number, group in enumerate(live) for name in group}
    of_saved = {name: number for number, group in enumerate(saved) for name in group}
    new = [name for name in of_live if name not in of_saved]
    if new:
        raise CheckpointError(
            f"The optimizer has {_listed(new)}, of which the checkpoint has no optimizer state; resume with "
            "the parameters that were trained, or start a new run from the checkpoint's weights."
        )
    missing = [name for name in of_saved if name not in of_live]
    if missing:
        raise CheckpointError(
            f"The checkpoint has optimizer state of {_listed(missing)}, which this optimizer does not hold; "
            "resume with the parameters that were trained, or start a new run from the checkpoint's weights."
        )
    for name, number in of_live.items():
        if of_saved[name] != number:
            raise CheckpointError(
                f"The parameter {name!r} is in group {of_saved[name]} of the checkpoint's optimizer and in "
                f"group {number} of this one; resume with the same groups."
            )
    if len(live) != len(saved):  # groups without parameters
        raise CheckpointError(
            f"The checkpoint's optimizer has {len(saved)} groups and this one {len(live)}; "
            "resume with the same groups."
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return (
        f"the parameter {shown}"
        if len(names) == 1
        else f"the {len(names)} parameters {shown}" + (", ..." if len(names) > 3 else "")
    )


def _to_host(value: Any, copy_tensors: bool) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.clone() if copy_tensors and value.device.type == "cpu" else value.to("cpu")
    if type(value) is dict:
        return {key: _to_host(item, copy_tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_host(item, copy_tensors) for item in value)
    return value


def _like(parameter: torch.Tensor, value: Any, name: str) -> Any:
    """A copy of the state, its tensors of the parameter's shape with the parameter's strides."""
    if isinstance(value, torch.Tensor):
        if value.shape == parameter.shape:
            made = torch.empty_like(
                parameter, dtype=value.dtype, device=value.device, memory_format=torch.preserve_format
            )
            return made.detach().copy_(value)
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _like(parameter, item, name) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_like(parameter, item, name) for item in value)
    return value


def _option(saved: Any, live: Any) -> Any:
    """A group's option, a tensor where the optimizer at hand keeps a tensor (a compiled step's rate)."""
    if isinstance(live, torch.Tensor):
        return torch.as_tensor(saved, dtype=live.dtype).to(live.device, copy=True)
    if isinstance(saved, torch.Tensor) and isinstance(live, float):
        return saved.item()
    return copy.deepcopy(saved)


def _keep_dtypes(live: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
    for key, value in saved.items():
        now = live.get(key)
        if isinstance(value, torch.Tensor):
            if isinstance(now, torch.Tensor) and now.dtype != value.dtype and key != "step":
                live[key] = value.to(now.device)
        elif type(now) is type(value):  # else the optimizer has made something of its own of it
            live[key] = value


def set_gradients(
    named_parameters: Iterable[tuple[str, torch.Tensor]], gradients: Mapping[str, torch.Tensor]
) -> None:
    """Sets the gradients of an unfinished accumulation, and clears those of other parameters.

    They are copied, to the device, dtype and strides of their parameters.

    Raises:
        CheckpointError: a gradient has no parameter, or another shape.
    """
    left = dict(gradients)
    for name, parameter in _first_names(named_parameters):
        gradient = left.pop(name, None)
        if gradient is not None and gradient.shape != parameter.shape:
            raise CheckpointError(
                f"The checkpoint's gradient of {name!r} has shape {tuple(gradient.shape)} and the parameter "
                f"{tuple(parameter.shape)}; build the model as it was when it was saved."
            )
        parameter.grad = None if gradient is None else torch.empty_like(parameter).detach().copy_(gradient)
    if left:
        raise CheckpointError(
            f"The checkpoint has a gradient of {_listed(list(left))}, which the model lacks; build the model as it "
            "was when it was saved."
        )
