"""What kind of loader a loader is, and the order in which it would give rows.

The order is decided once, at an epoch's beginning, with the draws that torch's own loader makes: its base
seed, then what its sampler draws. Rank 0's draws count for every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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

from drivetrain.data.dealing import (
    Dealt,
    count,
    dealt_batches,
    dealt_rows,
    dealt_to,
    dealt_units,
    interleaved,
)
from drivetrain.data.samplers import SeededRandomSampler, has_length
from drivetrain.gathering import broadcast

MAP, ITERABLE, FOREIGN = "map", "iterable", "foreign"


def kind_of(loader: Any) -> str:
    """`map`, `iterable`: a torch DataLoader that we read ourselves; `foreign`: one that iterates itself."""
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
    """Whether the loader gives each rank rows of its own: a DistributedSampler, a dataset split by node."""
    dataset = getattr(loader, "dataset", None)
    if getattr(dataset, "_distributed", None) is not None:
        return True
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)):
        replicas = getattr(sampler, "num_replicas", None)
        if isinstance(replicas, int) and replicas > 1:
            return True
    return False


def unit_of(loader: Any) -> str:
    """What of a loader can be dealt out to any number of processes.

    `row`: its rows; `batch`: only whole batches, which a sampler makes its own way; `own`: nothing, since each
    process has a loader of its own.
    """
    kind = kind_of(loader)
    if kind == FOREIGN or is_split_already(loader):
        return "own"
    if kind == ITERABLE:
        return "row" if loader.batch_size is not None else "batch"
    sampler = loader.batch_sampler
    return "row" if type(sampler) is BatchSampler and has_length(sampler.sampler) else "batch"


def batches_of(loader: Any, world: int, done: int = 0) -> int | None:
    """How many global batches an epoch of the loader has; None where nobody knows.

    Args:
        loader: any loader.
        world: number of ranks.
        done: leave out so much of what is counted in `group_of`.
    """
    kind = kind_of(loader)
    if kind == FOREIGN:
        return max(len(loader) - done, 0) if has_length(loader) else None
    if is_split_already(loader):
        world = 1
    sampler = loader.batch_sampler
    if kind == ITERABLE:
        units, drop_last = loader.dataset, loader.batch_size is not None and loader.drop_last
    elif type(sampler) is BatchSampler:
        units, drop_last = sampler.sampler, sampler.drop_last
    else:
        units, drop_last = sampler if sampler is not None else loader.sampler, False
    if not has_length(units):
        # A plain batch sampler's length is that of its sampler, so that it has none either.
        return None
    return count(max(len(units) - done, 0), group_of(loader, world), drop_last)


def group_of(loader: Any, world: int) -> int:
    """What a whole global batch takes: rows of the dataset, or units where a sampler makes batches its own way."""
    kind = kind_of(loader)
    if (
        kind == MAP
        and type(loader.batch_sampler) is BatchSampler
        and has_length(loader.batch_sampler.sampler)
    ):
        return int(loader.batch_sampler.batch_size) * world
    return int(loader.batch_size or 1) * world if kind == ITERABLE else world


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


def state_of(generator: torch.Generator | None = None) -> torch.Tensor:
    """The state of a generator, by default of the global one."""
    return torch.get_rng_state() if generator is None else generator.get_state()


@dataclass(slots=True)
class Order:
    """The order of an epoch.

    Attributes:
        base_seed: the loader's base seed, from which workers are seeded.
        drawn_from: the state of the generator before it was drawn.
        seed: of the permutation, where a plain RandomSampler makes it and nothing else is needed to make it
            again; None otherwise.
        rows: the indices of rows in their order, for a plain BatchSampler; else None.
        units: what a batch sampler, or a sampler without batches, gives.
        batch_size, drop_last: for `rows`.
        batched: whether `units` are lists of rows.
    """

    base_seed: int
    drawn_from: torch.Tensor
    seed: int | None = None
    rows: Any = None
    units: Any = None
    batch_size: int = 1
    drop_last: bool = False
    batched: bool = True

    def dealt(
        self, done: int, world: int, ranks: Sequence[int], batch_size: int | None = None
    ) -> Iterator[Dealt]:
        """The batches of some ranks after `done` of the rows (or units) have been seen, counted over all ranks.

        Args:
            done: rows or units.
            world: number of ranks that a global batch is dealt out to.
            ranks: those whose batches are wanted, of each global batch in this order.
            batch_size: rows of a rank, where it is not that of the sampler.
        """
        if self.rows is not None:
            size = batch_size or self.batch_size
            return interleaved(
                [dealt_rows(self.rows, done, size, self.drop_last, world, rank) for rank in ranks]
            )
        if isinstance(self.units, list):
            units = iter(self.units[done:])
        else:
            units = self.units
            for _ in islice(units, done):  # now, since a sampler may draw as it goes
                pass
        return dealt_to(ranks, dealt_batches if self.batched else dealt_units, units, world)


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
    loader: DataLoader[Any],
    processes: Any,
    world: int,
    seeds: tuple[int, int | None] | None = None,
    permutation: int = 0,
    base_seed: int | None = None,
) -> Order:
    """The order of an epoch of a map-style loader, drawn now or made again from its seeds.

    Args:
        loader: of the kind `map`.
        processes: of the run; rank 0 decides.
        world: 1 where every rank has an order of its own.
        seeds: base seed and sampler's seed of the epoch, where no number is to be drawn.
        permutation: which one of the sampler's seed it is, from 0.
        base_seed: that of persistent workers, which torch draws once alone.
    """
    sampler: Any = loader.batch_sampler
    # torch makes the index sampler's iterator before it draws the base seed.
    index_iterator = iter(loader._index_sampler)
    drawn_from = state_of(loader.generator)
    if seeds is not None:
        base_seed = seeds[0]
    elif base_seed is None:
        base_seed = draw(loader.generator)
    if sampler is None or type(sampler) is not BatchSampler:
        own = sampler if sampler is not None else loader.sampler
        units: Any = index_iterator
        if has_length(own):
            units = list(index_iterator)
            if world > 1:
                base_seed, units = broadcast((base_seed, units), processes)
        return Order(base_seed, drawn_from, units=units, batched=sampler is not None)

    options: dict[str, Any] = {"batch_size": int(sampler.batch_size), "drop_last": bool(sampler.drop_last)}
    rows_from: Any = sampler.sampler
    if _is_plain_random(rows_from) and rows_from.generator is None:
        seed = draw() if seeds is None or seeds[1] is None else seeds[1]
        if world > 1 and seeds is None:
            base_seed, seed = broadcast((base_seed, seed), processes)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(permutation):
            torch.randperm(len(rows_from), generator=generator)
        return Order(
            base_seed, drawn_from, seed, torch.randperm(len(rows_from), generator=generator), **options
        )
    if type(rows_from) in (SequentialSampler, SeededRandomSampler):
        rows: Any = range(len(rows_from)) if type(rows_from) is SequentialSampler else rows_from.order()
        if world > 1 and seeds is None:
            base_seed = broadcast(base_seed, processes)
    elif has_length(rows_from):
        rows = list(rows_from)
        if world > 1:
            base_seed, rows = broadcast((base_seed, rows), processes)
    else:  # it may never end: take its batches as they come, and of several ranks each reads it all
        return Order(base_seed, drawn_from, units=index_iterator)
    return Order(base_seed, drawn_from, rows=rows, **options)
