"""A checkpoint's position in the data is looked at before a pass goes on from it: numbers, and states of generators."""

from __future__ import annotations

import random
from typing import Any

import torch

from drivetrain.checkpoint.randomness import is_numpy_state
from drivetrain.data import randomness
from drivetrain.data.position import Position
from drivetrain.errors import CheckpointError
from drivetrain.trust import is_count

_COUNTS = ("batch", "row", "epoch", "permutation", "skip", "count", "turn", "passes")
_WORDS = 625  # of Python's generator, its place in them last


def checked(position: Position) -> Position:
    """The position itself.

    Raises:
        CheckpointError: it is not one that a pass has told. What is the user's data's own is not looked at.
    """
    try:
        fits = _fits(position)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _wrong() from error
    if not fits:
        raise _wrong()
    return position


def _wrong() -> CheckpointError:
    return CheckpointError(
        "The checkpoint's position in the data is not one that can be gone on from; resume from an earlier checkpoint, "
        "or begin the epoch anew by ignore_data_skip=True."
    )


def _fits(place: Any) -> bool:
    fits = all(is_count(place.get(name, 0)) for name in _COUNTS)
    fits = fits and all(
        is_count(place.get(name, 1)) and place.get(name, 1) > 0 for name in ("group", "world")
    )
    for name in ("base_seed", "seed"):
        seed = place.get(name)
        fits = fits and (seed is None or (type(seed) is int and -(2**63) <= seed < 2**63))
    fits = fits and set(place.get("ahead", ())) <= set(randomness.KINDS)
    for name in ("start", "pending", "random", "first"):
        fits = fits and (name not in place or _is_state(place[name]))
    texts = [*place.get("generators", ()), *place.get("now", ())]
    texts += [place["seeded_from"]] if "seeded_from" in place else []
    for text in texts:
        torch.Generator().set_state(randomness.text_to_tensor(text))
    ranks = place.get("ranks", [])
    fits = (
        fits
        and isinstance(ranks, list)
        and len(ranks) in (0, place.get("world", 1))
        and all(map(_fits, ranks))
    )
    return fits and (
        "workers" not in place or (_fits(place["workers"]) and all(map(_fits, place["workers"]["each"])))
    )


def _is_state(saved: Any) -> bool:
    """Whether the generators take it. numpy's takes what it should not, so its state is looked at by us."""
    state = randomness.from_json(saved)
    if "torch" in state:
        torch.Generator().set_state(state["torch"])
    if "python" in state:
        version, words, gauss = state["python"]
        if len(words) != _WORDS or not (gauss is None or type(gauss) is float):
            return False
        random.Random(0).setstate((version, words, gauss))
    return "numpy" not in state or is_numpy_state(state["numpy"])
