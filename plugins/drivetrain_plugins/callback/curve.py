"""A curve in a line of text."""

from __future__ import annotations

import math
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
NOT_A_NUMBER = "!"


class Curve:
    """Values in their order, in bounded memory: where they become too many, each two neighbours become their mean.

    Args:
        most: how many are kept at most.
    """

    def __init__(self, most: int = 128) -> None:
        self._most = most
        self._each = 1  # values that an entry stands for
        self._entries: list[float] = []
        self._open: list[float] = []  # of the entry that is being filled

    def add(self, value: float) -> None:
        """Adds a value. One that is NaN or infinite makes its entry so."""
        self._open.append(value)
        if len(self._open) < self._each:
            return
        self._entries.append(_mean(self._open))
        self._open = []
        if len(self._entries) >= self._most:
            entries = self._entries
            self._entries = [_mean(entries[at : at + 2]) for at in range(0, len(entries), 2)]
            self._each *= 2

    def drawn(self, width: int) -> str:
        """The curve in at most `width` blocks; on a logarithmic scale where all values are above zero."""
        entries, unfinished = list(self._entries), self._open  # another thread may add meanwhile
        if unfinished:
            entries.append(_mean(unfinished))
        if len(entries) < 2 or width < 2:
            return ""
        columns = min(width, len(entries))
        edges = [round(column * len(entries) / columns) for column in range(columns + 1)]
        values = [_mean(entries[first:last]) for first, last in pairwise(edges)]
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return NOT_A_NUMBER * columns
        scale = math.log if min(finite) > 0 else float
        low, high = scale(min(finite)), scale(max(finite))
        span = high - low
        drawn = ""
        for value in values:
            if not math.isfinite(value):
                drawn += NOT_A_NUMBER
            else:
                height = (scale(value) - low) / span if span > 0 else 0.0
                drawn += BLOCKS[min(int(height * len(BLOCKS)), len(BLOCKS) - 1)]
        return drawn


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
