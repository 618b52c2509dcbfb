"""Fewer points that look the same: of each stretch its first, lowest, highest and last."""

from __future__ import annotations

import math
from collections.abc import Sequence

LIMIT = 2000


def thinned(values: Sequence[float | None], limit: int = LIMIT) -> list[int]:
    """Which points are drawn, by their places; all of them where they are few.

    The lowest and the highest of all are always there, and so are gaps: NaN and infinity, which are told as None.

    Args:
        values: the points, in their order.
        limit: about how many are kept.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))
    kept: set[int] = {0, count - 1}
    stretches = max(limit // 4, 1)
    for number in range(stretches):
        first, end = number * count // stretches, (number + 1) * count // stretches
        there = [place for place in range(first, end) if values[place] is not None]
        kept.update((first, end - 1))
        if there:
            kept.add(min(there, key=lambda place: _value(values[place])))
            kept.add(max(there, key=lambda place: _value(values[place])))
        if len(there) < end - first:
            kept.add(next(place for place in range(first, end) if values[place] is None))
    return sorted(kept)


def finite(value: object) -> float | None:
    """A number that can be drawn; None for NaN, infinity and what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _value(value: float | None) -> float:
    return 0.0 if value is None else value
