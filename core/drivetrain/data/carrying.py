"""What a pass over a loader leaves to the next: generators, persistent workers, data with a state.

A run that goes on between two passes has it from the position of the one that is over.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from drivetrain.data import randomness
from drivetrain.data.position import Position, of_rank
from drivetrain.data.source import MAP, generators_of, kind_of

_waiting: WeakKeyDictionary[Any, Position] = WeakKeyDictionary()


def carry_over(loader: Any, position: Position, processes: Any) -> None:
    """Leaves a loader as the pass left it whose last position this is, for the pass that begins next.

    Args:
        loader: any loader.
        position: at its end, or where it was broken off.
        processes: of the run.
    """
    mine = of_rank(position, processes.rank, processes.world_size) if position else {}
    ended = bool(mine.get("ended"))
    set_generators(loader, mine.get("generators" if ended else "now", []))
    names = ("workers", "dataset") if ended else ("workers",) if kind_of(loader) == MAP else ()
    left = {name: mine[name] for name in names if name in mine}
    if left:
        _waiting[loader] = left


def carried(loader: Any) -> Position:
    """What was carried over, once."""
    try:
        return _waiting.pop(loader, {})
    except TypeError:  # a loader such as a list
        return {}


def set_generators(loader: Any, texts: list[str]) -> None:
    """Gives generators of the user's own the states that they had."""
    for generator, text in zip(generators_of(loader), texts, strict=False):
        generator.set_state(randomness.text_to_tensor(text))
