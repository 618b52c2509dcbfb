"""The model's weights by name, whole, out of DeepSpeed's parameters and into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from drivetrain.checkpoint import check_names, check_shape, set_weights
from drivetrain.host_copies import copied
from drivetrain.slots import Model
from drivetrain_plugins.strategy.deepspeed.pieces import Pieces, shape_of


def weights_out(
    model: Model, pieces: Pieces | None, masters: bool, keep: bool, untrained: dict[int, Tensor]
) -> dict[str, Tensor]:
    """The bare model's `state_dict()`, whole. A collective.

    Args:
        model: the bare model.
        pieces: of this process; None where every process holds every weight whole, and no other copy is kept.
        masters: the copies in single precision that the optimizer updates, where weights themselves are halved.
        keep: whether this process wants them; the others only take part.
        untrained: weights that are not trained, as they were, by the identity of their parameters.

    Returns:
        The weights; all of them copies on the host where parameters are spread over the processes (stage 3).
    """
    parts = parameters_are_spread(model)
    if pieces is None and not parts:
        return dict(model.state_dict())
    from deepspeed.utils import safe_get_full_fp32_param

    wholes: dict[int, Tensor | None] = {}
    found: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.nn.Parameter):
            found[name] = copied(value) if parts else value.detach() if isinstance(value, Tensor) else value
            continue
        if id(value) not in wholes:  # a tied one is gathered once
            trained = pieces is not None and pieces.flat_of(value) is not None
            if masters and trained:
                whole = safe_get_full_fp32_param(value)
                wholes[id(value)] = whole.to("cpu", copy=True) if keep else None
            elif masters and id(value) in untrained:
                wholes[id(value)] = untrained[id(value)]
            else:
                with gathered(value):
                    data = value.detach()
                    wholes[id(value)] = (data.to("cpu", copy=True) if parts else data) if keep else None
        found[name] = wholes[id(value)]
    return found if keep else {}


def weights_in(model: Model, pieces: Pieces | None, weights: dict[str, Tensor], rank: int) -> None:
    """Sets the weights, and the copies that the optimizer updates. A collective.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    if not parameters_are_spread(model):
        set_weights(model, weights)
    else:
        _into_parts(model, weights, rank)
    if pieces is None:
        return
    for name, parameter in model.named_parameters():
        piece = pieces.of(parameter)
        if piece is not None:
            whole = weights.get(name)
            if whole is None:
                whole = next(weights[other] for other in _names_of(model, parameter) if other in weights)
            piece.of_row(pieces.rows[piece.flat].data).copy_(piece.of_whole(whole))


def _names_of(model: Model, parameter: Tensor) -> Iterator[str]:
    for name, found in model.named_parameters(remove_duplicate=False):
        if found is parameter:
            yield name


def _into_parts(model: Model, weights: dict[str, Tensor], rank: int) -> None:
    own = model.state_dict(keep_vars=True)
    by_identity: dict[int, str] = {}
    for name, value in own.items():
        if name in weights and isinstance(value, Tensor):
            by_identity.setdefault(id(value), name)
    missing = [name for name, value in own.items() if name not in weights and id(value) not in by_identity]
    unexpected = [name for name in weights if name not in own]
    kind = type(model).__name__
    check_names(kind, missing, unexpected)
    for name, value in own.items():
        if isinstance(value, Tensor) and name in weights:
            check_shape(name, weights[name], shape_of(value), kind)
    done: set[int] = set()
    for value in own.values():
        if not isinstance(value, Tensor) or id(value) in done:
            continue
        done.add(id(value))
        given = weights[by_identity[id(value)]]
        if is_spread(value):
            with gathered(value, changed_by=0), torch.no_grad():
                if rank == 0:
                    value.data.copy_(given)
        else:
            with torch.no_grad():
                value.data.copy_(given)


def is_spread(parameter: Any) -> bool:
    """Whether a parameter is cut over the processes (stage 3)."""
    return hasattr(parameter, "ds_id")


def parameters_are_spread(model: Model) -> bool:
    """Whether any parameter of a model is cut over the processes."""
    return any(is_spread(parameter) for parameter in model.parameters())


@contextmanager
def gathered(parameter: Any, changed_by: int | None = None) -> Iterator[None]:
    """A parameter whole on every process, for a while. A collective where it is cut.

    Args:
        parameter: any; one that is whole stays as it is.
        changed_by: the rank whose changes go to all; None where nobody changes it.
    """
    if not is_spread(parameter):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=changed_by):
        yield
