"""An optimizer's state that is keyed by number, keyed by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from drivetrain.checkpoint.canonical import names_of
from drivetrain.errors import CheckpointError
from drivetrain.slots import Model, OptimizerFactory, TrainState

# State of which each number belongs to one of the parameter's.
_LIKE_PARAMETER = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "sum",
)


def group_names(factory: OptimizerFactory, model: Model) -> list[list[str]]:
    """The names of the parameters of each group that the optimizer of a bare model has, in their order.

    A strategy may lay the groups out in its own way; these are the ones that a single process has.
    """
    if factory.finished is not None:
        groups = factory.finished.param_groups
    elif factory.groups is not None:
        groups = factory.groups(model)
    else:
        groups = [{"params": list(model.parameters())}]
    return names_of(groups, model.named_parameters())


def by_name(saved: Any, names: list[list[str]], weights: Mapping[str, Any], path: str) -> TrainState:
    """The canonical state of an optimizer's `state_dict()`.

    Args:
        saved: what it gave.
        names: the names of the parameters of each group, in their order.
        weights: by name.
        path: the file it is from, for errors.

    Raises:
        CheckpointError: it is not an optimizer's state, or one of other parameters or groups.
    """
    state, groups, extra = _parts(saved, path)
    counts, own = [len(group["params"]) for group in groups], [len(group) for group in names]
    if counts != own:
        raise CheckpointError(
            f"The file {path} has {_counted(counts)}, and the optimizer here has {_counted(own)}: resume with the "
            "model, the frozen parameters and the groups that it was written with."
        )
    by_number = {
        number: name
        for group, of_group in zip(groups, names, strict=True)
        for number, name in zip(group["params"], of_group, strict=True)
    }
    if len(by_number) != sum(own):
        raise _no_state(path)
    named: dict[str, dict[str, Any]] = {}
    for number, entry in state.items():
        if number not in by_number or not isinstance(entry, dict):
            raise _no_state(path)
        _check_shapes(entry, by_number[number], number, weights, path)
        named[by_number[number]] = entry
    return TrainState(
        dict(weights),
        named,
        [{**group, "params": of_group} for group, of_group in zip(groups, names, strict=True)],
        optimizer_extra=extra,
    )


def _parts(saved: Any, path: str) -> tuple[dict[Any, Any], list[dict[str, Any]], dict[str, Any]]:
    if not isinstance(saved, dict) or not _are_keys(saved):
        raise _no_state(path)
    state, groups = saved.get("state"), saved.get("param_groups")
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise _no_state(path)
    for group in groups:
        if not isinstance(group, dict) or not _are_keys(group) or not isinstance(group.get("params"), list):
            raise _no_state(path)
        if not all(type(number) is int for number in group["params"]):
            raise _no_state(path)
    return state, groups, {key: value for key, value in saved.items() if key not in ("state", "param_groups")}


def _are_keys(keys: Iterable[Any]) -> bool:
    return all(isinstance(key, str) for key in keys)


def _check_shapes(
    entry: dict[str, Any], name: str, number: int, weights: Mapping[str, Any], path: str
) -> None:
    weight = weights.get(name)
    if not isinstance(weight, torch.Tensor):
        return  # what is missing of the model is said when its weights are set
    shape = weight.shape
    expected = dict.fromkeys(_LIKE_PARAMETER, shape)
    expected |= {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
    for key, value in entry.items():
        if key in expected and isinstance(value, torch.Tensor) and value.shape != expected[key]:
            raise CheckpointError(
                f"The file {path} has for parameter {number} a {key!r} of shape {tuple(value.shape)}, and {number} is "
                f"{name!r} of shape {tuple(shape)} here: resume with the model and the groups that it was written with."
            )


def _counted(counts: list[int]) -> str:
    return f"{len(counts)} group(s) of {', '.join(map(str, counts))} parameters" if counts else "no groups"


def _no_state(path: str) -> CheckpointError:
    return CheckpointError(
        f"The file {path} does not hold an optimizer's state; resume from another checkpoint."
    )
