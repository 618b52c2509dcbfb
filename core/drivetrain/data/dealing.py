"""Which rows of a global batch a rank takes. Pure functions of numbers.

A global batch is what all ranks run at once: world * batch_size rows. It is dealt in contiguous slices, so
that W ranks of b rows run the very rows that one process runs with W·b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, tee
from typing import Any, NamedTuple

import torch


class Dealt(NamedTuple):
    """What one rank runs of one global batch.

    Attributes:
        rows: indices of its rows (or whatever the sampler gives).
        weight: its rows * world / rows of all, the factor of its loss; 0 where it runs a row for company.
        shares: rows of each rank.
    """

    rows: Any
    weight: float
    shares: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """What a global batch is, where a run goes on with another number of processes than it began with.

    The global batch stays what it was, so that every update sees the same rows.

    Attributes:
        world: processes whose batches make a global batch: those that the run began with.
        parts: micro-batches in which each process of now runs its share of a global batch.
    """

    world: int = 1
    parts: int = 1


def interleaved(streams: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """One of each stream, then the next of each; they are of one length."""
    return streams[0] if len(streams) == 1 else chain.from_iterable(zip(*streams, strict=True))


def shares(rows: int, world: int) -> tuple[int, ...]:
    """Rows of each rank, as even as can be, the longer shares first."""
    each, more = divmod(rows, world)
    return (each + 1,) * more + (each,) * (world - more)


def deal(rows: Sequence[Any], world: int, rank: int) -> Dealt:
    """A rank's part of the rows of one global batch. A rank that gets none takes the first row, weight 0."""
    parts = shares(len(rows), world)
    mine = parts[rank]
    if mine == 0:
        return Dealt(rows[:1], 0.0, parts)
    start = sum(parts[:rank])
    return Dealt(rows[start : start + mine], mine * world / len(rows), parts)


def count(rows: int, group: int, drop_last: bool) -> int:
    """Global batches of `group` rows in `rows` rows."""
    return rows // group if drop_last else -(-rows // group)


CHUNK = 1 << 16
"""Rows whose indices are made Python numbers at a time: few for the memory, many for the clock."""


def dealt_rows(
    order: torch.Tensor | Sequence[int] | range,
    start: int,
    batch_size: int,
    drop_last: bool,
    world: int,
    rank: int,
) -> Iterator[Dealt]:
    """A rank's batches of an order of rows, from row `start` of it.

    Args:
        order: indices of rows, one dimension.
        start: rows of the order that have been seen.
        batch_size: rows of a rank.
        drop_last: leave a last short global batch out.
    """
    group = batch_size * world
    total = len(order)
    start = min(start, total)
    full = start + (total - start) // group * group
    whole = (batch_size,) * world
    chunk = max(CHUNK // group, 1) * group
    for low in range(start, full, chunk):
        part = _numbers(order[low : min(low + chunk, full)])
        for first in range(rank * batch_size, len(part), group):
            yield Dealt(part[first : first + batch_size], 1.0, whole)
    if full < total and not drop_last:
        yield deal(_numbers(order[full:]), world, rank)


def _numbers(rows: Any) -> Any:
    return rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)


def dealt_batches(batches: Iterable[Sequence[Any]], world: int, rank: int) -> Iterator[Dealt]:
    """A rank's batches of a batch sampler: of each `world` lists its own; what is left over is dealt out."""
    if world == 1:
        for batch in batches:
            yield Dealt(batch, 1.0, (len(batch),))
        return
    iterator = iter(batches)
    while group := list(islice(iterator, world)):
        if len(group) < world:
            yield deal([row for batch in group for row in batch], world, rank)
            return
        parts = tuple(len(batch) for batch in group)
        yield Dealt(group[rank], parts[rank] * world / sum(parts), parts)


def dealt_units(units: Iterable[Any], world: int, rank: int) -> Iterator[Dealt]:
    """As `dealt_batches`, of what cannot be split: each counts alike (`shares` is empty)."""
    iterator = iter(units)
    while group := list(islice(iterator, world)):
        if rank < len(group):
            yield Dealt(group[rank], world / len(group), ())
        else:
            yield Dealt(group[0], 0.0, ())


def dealt_to(
    ranks: Sequence[int], deal: Callable[[Any, int, int], Iterator[Dealt]], given: Iterable[Any], world: int
) -> Iterator[Dealt]:
    """What `deal` gives each of some ranks, of each global batch in their order; `given` is read once.

    Args:
        ranks: whose batches are wanted.
        deal: `dealt_batches` or `dealt_units`.
        given: what is dealt out.
        world: number of ranks.
    """
    each = tee(given, len(ranks)) if len(ranks) > 1 else (given,)
    return interleaved([deal(one, world, rank) for one, rank in zip(each, ranks, strict=True)])
