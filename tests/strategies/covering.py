"""Covering arrays: few rows in which every pair of values of two factors stands together.

Greedy, and the same rows every time. A row is a value for each factor. What must stand together somewhere are the
targets, by default all pairs; what can never stand together is said by the caller, so that no pair is hidden in a
row that ends in an error because of another pair.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

Row = dict[str, str]
Target = frozenset[tuple[str, str]]
Factors = Mapping[str, Sequence[str]]


def pairs(factors: Factors) -> list[Target]:
    """Every pair of values of two factors."""
    return [
        frozenset({(one, a), (other, b)})
        for one, other in itertools.combinations(factors, 2)
        for a in factors[one]
        for b in factors[other]
    ]


def covered(targets: Iterable[Target], rows: Iterable[Row]) -> set[Target]:
    """The targets of which some row has every value."""
    sets = [set(row.items()) for row in rows]
    return {target for target in targets if any(target <= row for row in sets)}


def cover(
    factors: Factors,
    targets: Iterable[Target],
    begun: Iterable[Row] = (),
    possible: Callable[[Row], bool] = lambda row: True,
) -> list[Row]:
    """Completes the rows that are begun, and adds as many as the targets take.

    Args:
        factors: names and values; missing values of a row are chosen in this order.
        targets: what must stand together in some row; each must be possible.
        begun: rows of which some values are set, all of which come back whole.
        possible: whether a row may be, also one that has not all of its values yet.

    Returns:
        The begun rows in their order, then the added ones.
    """
    left = dict.fromkeys(targets)
    uses: Counter[tuple[str, str]] = Counter()
    rows: list[Row] = []

    def complete(start: Row) -> None:
        row = dict(start)
        for factor, values in factors.items():
            if factor in row:
                continue
            fitting = [value for value in values if possible(row | {factor: value})]
            if not fitting:
                raise ValueError(f"No {factor} fits {row}.")

            def worth(value: str, factor: str = factor) -> tuple[int, int]:
                item = (factor, value)
                there = {*row.items(), item}
                return sum(item in target and target <= there for target in left), -uses[item]

            row[factor] = max(fitting, key=worth)  # of equals the first
        uses.update(row.items())
        rows.append({factor: row[factor] for factor in factors})
        for target in covered(left, [row]):
            del left[target]

    for start in begun:
        complete(start)
    while left:
        complete(dict(next(iter(left))))
    return rows
