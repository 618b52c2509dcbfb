"""Whether an optimizer works element by element, as one must that is given parts of parameters.

Found out by trying: two steps of small tensors, and of the same numbers cut into flat pieces. An optimizer whose
step on a piece is not that piece of its step on the whole (Adafactor's factors, Muon's matrices, LAMB's norms,
blocks of 8 bits) would train another model under a strategy that spreads parameters over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from drivetrain.slots import Group

# More elements than 4096, below which 8-bit optimizers keep their state whole.
_SHAPE = (96, 128)
_STEPS = 2
_RATE = 0.01  # of the steps that are tried; a warmup begins at 0, where every optimizer does the same


def is_element_wise(cls: Callable[..., Any], kwargs: Mapping[str, Any], groups: Sequence[Group]) -> bool:
    """Whether two updates of pieces are the pieces of two updates.

    Args:
        cls: the optimizer's class, or what makes one from groups.
        kwargs: its keyword arguments.
        groups: those that it is to have, for their options and for how many dimensions their parameters have.

    Returns:
        False also where it refuses flat tensors, or keeps state of another shape than its parameter's. True where it
        cannot be tried at all (it asks for a model, or a device), since nothing is known against it then.
    """
    values = [_samples(group, number) for number, group in enumerate(groups)]
    generator = torch.Generator().manual_seed(1)
    steps = [
        [[torch.randn(v.shape, generator=generator) for v in of] for of in values] for _ in range(_STEPS)
    ]
    options = [_tried(group) for group in groups]
    kwargs = _tried(kwargs)
    try:
        whole, fits = _updated(cls, kwargs, options, values, steps)
    except Exception:
        return True
    try:
        pieces, pieces_fit = _updated(
            cls, kwargs, options, [_cut(of) for of in values], [[_cut(of) for of in step] for step in steps]
        )
    except Exception:
        return False
    if not (fits and pieces_fit):
        return False
    for before, one, other in zip(values, whole, pieces, strict=True):
        if before:
            start = _row(before)
            moved, moved_too = _row(one) - start, _row(other) - start
            bound = 1e-3 * float(moved.abs().max()) + 1e-12
            if not torch.allclose(moved, moved_too, rtol=0.0, atol=bound):
                return False
    return True


def spoken(cls: Any) -> str:
    """The optimizer's class as an error names it: with its package where that is neither torch nor drivetrain."""
    name, package = str(getattr(cls, "__name__", cls)), str(getattr(cls, "__module__", "")).partition(".")[0]
    return name if package in ("", "torch", "drivetrain", "drivetrain_plugins") else f"{package}.{name}"


def _tried(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a trial."""
    options = {key: value for key, value in given.items() if key not in ("params", "initial_lr")}
    return {**options, "lr": _RATE} if "lr" in options else options


def _samples(group: Group, number: int) -> list[torch.Tensor]:
    """A small tensor for each number of dimensions that parameters of the group have."""
    generator = torch.Generator().manual_seed(number)
    dims = sorted({parameter.dim() for parameter in group["params"] if parameter.dim() > 0})
    shapes = [(*_SHAPE[: min(dim, 2)], *([1] * (dim - 2))) for dim in dims]
    return [0.02 * torch.randn(shape, generator=generator) for shape in shapes]


def _cut(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each laid flat, in two pieces of odd length, since blocks of an even one would go into both as into the whole."""
    return [
        piece
        for tensor in tensors
        for piece in tensor.flatten().tensor_split([tensor.numel() // 3 // 2 * 2 + 1])
    ]


def _row(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _updated(
    cls: Callable[..., Any],
    kwargs: Mapping[str, Any],
    options: Sequence[dict[str, Any]],
    values: Sequence[Sequence[torch.Tensor]],
    steps: Sequence[Sequence[Sequence[torch.Tensor]]],
) -> tuple[list[list[torch.Tensor]], bool]:
    """The values of each group after the steps; and whether all state is scalar or of its parameter's shape."""
    parameters = [[torch.nn.Parameter(value.clone()) for value in of] for of in values]
    optimizer = cls(
        [{**given, "params": of} for given, of in zip(options, parameters, strict=True) if of], **kwargs
    )
    train = getattr(optimizer, "train", None)
    if callable(train):
        train()  # schedule-free ones step only in this mode
    for step in steps:
        for of, gradients in zip(parameters, step, strict=True):
            for parameter, gradient in zip(of, gradients, strict=True):
                parameter.grad = gradient.clone()
        optimizer.step()
    fits = all(
        not isinstance(state, torch.Tensor) or state.dim() == 0 or state.shape == parameter.shape
        for of in parameters
        for parameter in of
        for state in optimizer.state.get(parameter, {}).values()
    )
    return [[parameter.detach() for parameter in of] for of in parameters], fits
