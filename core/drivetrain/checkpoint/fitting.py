"""Whether weights by name fit a model: one sentence where they do not, whichever strategy takes them in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from drivetrain.errors import CheckpointError


def check_names(
    kind: str, missing: Sequence[str], unexpected: Sequence[str], source: str = "the checkpoint"
) -> None:
    """Refuses weights of another model.

    Args:
        kind: the model's class.
        missing: names that the model has and the weights have not; of tied ones one is enough.
        unexpected: the other way round.
        source: where the weights are from.

    Raises:
        CheckpointError: there are such names.
    """
    if missing or unexpected:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"has {some(unexpected)}, which the model lacks"] if unexpected else []
        raise CheckpointError(f"The weights in {source} do not fit this {kind}: it {' and '.join(parts)}.")


def check_shape(
    name: str, given: Any, shape: Sequence[int], kind: str, source: str = "the checkpoint"
) -> None:
    """Refuses a weight that is no tensor, or of another shape than `shape`, that of the whole parameter.

    Raises:
        CheckpointError: it is.
    """
    if not isinstance(given, torch.Tensor):
        raise CheckpointError(f"The weight {name!r} in {source} is not a tensor.")
    if tuple(given.shape) != tuple(shape):
        raise CheckpointError(
            f"The weight {name!r} has shape {tuple(given.shape)} in {source} and {tuple(shape)} in "
            f"this {kind}; build the model as it was when it was saved."
        )


def some(names: Iterable[str]) -> str:
    """The first three, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
