"""What kind of loader a loader is, and the order in which it would give rows.

The order is decided once, at an epoch's beginning, with the draws that torch's own loader makes: its base
seed, then what its sampler draws. Rank 0's draws count for every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
)

from drivetrain.data.dealing import Dealt, count, dealt_batches, dealt_rows, dealt_units
from drivetrain.data.samplers import SeededRandomSampler, has_length
from drivetrain.gathering import broadcast

MAP, ITERABLE, FOREIGN = "map", "iterable", "foreign"


def kind_of(loader: Any) -> str:
    """`map` and `iterable`: a torch DataLoader that we read ourselves; `foreign`: one that iterates itself."""
    if not isinstance(loader, DataLoader):
        return FOREIGN
    cls = type(loader)
    changed = any(
        getattr(cls, name) is not getattr(DataLoader, name)
        for name in ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")
    )
    if changed or isinstance(loader.dataset, (IterDataPipe, MapDataPipe)):
        return FOREIGN
    return ITERABLE if isinstance(loader.dataset, IterableDataset) else MAP


def is_split_already(loader: Any) -> bool:
    """Whether the loader gives each rank rows of its own: a DistributedSampler, or a dataset split by node."""
    dataset = getattr(loader, "dataset", None)
    if getattr(dataset, "_distributed", None) is not None:
        return True
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)):
        replicas = getattr(sampler, "num_replicas", None)
        if isinstance(replicas, int) and replicas > 1:
            return True
    return False


def batches_of(loader: Any, world: int) -> int | None:
    """How many global batches an epoch of the loader has; None where nobody knows."""
    kind = kind_of(loader)
    if kind == FOREIGN or is_split_already(loader) or world == 1:
        return len(loader) if has_length(loader) else None
    if kind == ITERABLE:
        if not has_length(loader.dataset):
            return None
        if loader.batch_size is None:
            return count(len(loader.dataset), world, False)
        return count(len(loader.dataset), loader.batch_size * world, loader.drop_last)
    sampler = loader.batch_sampler
    if type(sampler) is BatchSampler:
        if not has_length(sampler.sampler):
            return None
        return count(len(sampler.sampler), sampler.batch_size * world, sampler.drop_last)  # type: ignore[arg-type]
    units = sampler if sampler is not None else loader.sampler
    return count(len(units), world, False) if has_length(units) else None  # type: ignore[arg-type]


def generators_of(loader: Any) -> list[torch.Generator]:
    """Generators of the user's own that the loader or its samplers draw from."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (
        loader,
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    )
    found: list[torch.Generator] = []
    for owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is known for known in found):
            found.append(generator)
    return found


def draw(generator: torch.Generator | None = None) -> int:
    """A seed, drawn as torch's loader and RandomSampler draw theirs."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


@dataclass(slots=True)
class Order:
    """The order of an epoch.

    Attributes:
        base_seed: the loader's base seed, from which workers are seeded.
        seed: of the permutation, where a plain RandomSampler makes it and nothing else is needed to make it
            again; None otherwise.
        rows: the indices of rows in their order, for a plain BatchSampler; else None.
        units: what a batch sampler, or a sampler without batches, gives.
        batch_size, drop_last: for `rows`.
        batched: whether `units` are lists of rows.
    """

    base_seed: int
    seed: int | None = None
    rows: Any = None
    units: Any = None
    batch_size: int = 1
    drop_last: bool = False
    batched: bool = True

    def dealt(self, batch: int, row: int, world: int, rank: int) -> Iterator[Dealt]:
        """A rank's batches after `batch` global batches, or `row` rows, have been seen."""
        if self.rows is not None:
            return dealt_rows(self.rows, row, self.batch_size, self.drop_last, world, rank)
        units = iter(self.units)
        for _ in range(batch * world):
            next(units, None)
        return dealt_batches(units, world, rank) if self.batched else dealt_units(units, world, rank)


def needs_no_state(loader: Any) -> bool:
    """Whether the order follows from the seeds alone: a plain sampler, and no generator of the user's own."""
    sampler = loader.batch_sampler
    if type(sampler) is not BatchSampler or generators_of(loader):
        return False
    return type(sampler.sampler) in (SequentialSampler, SeededRandomSampler) or _is_plain_random(
        sampler.sampler
    )


def _is_plain_random(sampler: Any) -> bool:
    return type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None


def map_order(
    loader: DataLoader[Any], processes: Any, world: int, seeds: tuple[int, int | None] | None = None
) -> Order:
    """The order of an epoch of a map-style loader, drawn now or made again from its seeds.

    Args:
        loader: of the kind `map`.
        processes: of the run; rank 0 decides.
        world: 1 where every rank has an order of its own.
        seeds: base seed and sampler's seed of the epoch, where no number is to be drawn.
    """
    sampler: Any = loader.batch_sampler
    # torch makes the index sampler's iterator before it draws the base seed.
    index_iterator = iter(loader._index_sampler)
    base_seed = draw(loader.generator) if seeds is None else seeds[0]
    if sampler is None or type(sampler) is not BatchSampler:
        own = sampler if sampler is not None else loader.sampler
        units: Any = index_iterator
        if has_length(own):
            units = list(index_iterator)
            if world > 1:
                base_seed, units = broadcast((base_seed, units), processes)
        return Order(base_seed, units=units, batched=sampler is not None)

    options = {"batch_size": int(sampler.batch_size), "drop_last": bool(sampler.drop_last)}
    rows_from: Any = sampler.sampler
    if _is_plain_random(rows_from) and rows_from.generator is None:
        seed = draw() if seeds is None or seeds[1] is None else seeds[1]
        if world > 1 and seeds is None:
            base_seed, seed = broadcast((base_seed, seed), processes)
        generator = torch.Generator().manual_seed(seed)
        return Order(base_seed, seed, torch.randperm(len(rows_from), generator=generator), **options)
    if type(rows_from) is SequentialSampler:
        rows: Any = range(len(rows_from))
        if world > 1 and seeds is None:
            base_seed = broadcast(base_seed, processes)
    elif has_length(rows_from):
        rows = list(rows_from)
        if world > 1:
            base_seed, rows = broadcast((base_seed, rows), processes)
    else:  # it may never end: take its batches as they come, and of several ranks each reads it all
        return Order(base_seed, units=index_iterator)
    return Order(base_seed, rows=rows, **options)
