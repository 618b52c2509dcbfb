"""One pass over the data of a loader, from any position in it.

A plain loader without workers is read here, row by row, without torch's own iterator: the same rows, the same
draws, and less work a batch. With workers torch's iterator is given the batches that remain.

Batches are fetched when they are asked for, unless fetching draws random numbers (a collator that masks at
random, say). Then one batch is fetched ahead, as accelerate's loaders did for transformers 4.34.0, so that
the draws of the data and those of the model fall in the same order; and the random state from before that
fetch is kept, so that a resumed run fetches the same batch again.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

from drivetrain.data import randomness
from drivetrain.data.dealing import Dealt
from drivetrain.data.device import find_batch_size, first_row
from drivetrain.data.fetching import iterable_items, map_items, skip, stateful, worker_items
from drivetrain.data.position import Position
from drivetrain.data.source import (
    FOREIGN,
    ITERABLE,
    MAP,
    batches_of,
    generators_of,
    is_split_already,
    kind_of,
    map_order,
    needs_no_state,
)
from drivetrain.gathering import gather_counts

logger = logging.getLogger("drivetrain")

Item: TypeAlias = tuple[Any, Dealt, int]
"""A batch, how it was dealt, and its rows on this rank."""


class BatchIterator:
    """Iterates one pass over a loader.

    Args:
        dataloader: torch's DataLoader, a subclass, or anything that gives batches.
        processes: `rank`, `world_size` and `device` of the run.
        epoch: the epoch, from 0; told to samplers and datasets that have `set_epoch`.
        position: where to go on; None or `{}` for the beginning.

    Attributes:
        batches: global batches of the pass, None where the data have no length.
        index: global batches handed out.
        weight: rows of this rank × world / rows of all, of the batch handed out last; 1.0 in one process.
        rows: its rows on this rank (0 where the rank runs a row for company).
        shares: its rows on each rank; `()` where they are not known.
    """

    def __init__(
        self, dataloader: Any, *, processes: Any, epoch: int = 0, position: Position | None = None
    ) -> None:
        self.dataloader = dataloader
        self.processes = processes
        self.epoch = epoch
        self.kind = kind_of(dataloader)
        # A loader that iterates itself, or is split over the ranks already, is every rank's own.
        self.own = processes.world_size > 1 and (self.kind == FOREIGN or is_split_already(dataloader))
        self.world = 1 if self.own else processes.world_size
        self.rank = 0 if self.own else processes.rank
        self.batches = batches_of(dataloader, processes.world_size)
        self.index = 0
        self.weight = 1.0
        self.rows = 0
        self.shares: tuple[int, ...] = ()
        self._group = 0
        self._seeds: tuple[int, int | None] | None = None
        self._start: Any = None
        self._generators: list[Any] = []
        self._ahead: tuple[str, ...] = ()
        self._before: Any = None
        self._untouched: Any = None
        self._before_data: Any = None
        self._stateful: Any = None
        self._begun = False
        self._position = position or None
        self._first = (0, 0)
        if self._position is not None:
            self.index = int(self._position["batch"])
            self._first = (self.index, int(self._position.get("row", 0)))
        self._iterator = self._run()

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def __next__(self) -> Any:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the pass: workers stop."""
        self._iterator.close()

    def position(self) -> Position:
        """The position after the batch handed out last; see `drivetrain.data.position`."""
        if not self._begun:
            return self._position or {}
        position: Position = {"batch": self.index, "epoch": self.epoch}
        if self._group:
            first_batch, first_row_ = self._first
            position["row"] = first_row_ + (self.index - first_batch) * self._group
        if self._seeds is not None:
            position["base_seed"], position["seed"] = self._seeds
        if self._start is not None:
            position["start"] = randomness.to_json(self._start)
        if self._generators:
            position["generators"] = [randomness.tensor_to_text(state) for state in self._generators]
        if self._ahead:
            position["ahead"] = list(self._ahead)
            if self._before is not None:
                position["pending"] = randomness.to_json(self._before)
            self._watch()
        if self._stateful is not None:
            state = self._before_data if self._ahead else self._stateful.state_dict()
            if state is not None:
                position["dataset"] = state
        return position

    def set_position(self, position: Position) -> None:
        """Goes on from a position; before the first batch is taken."""
        if self._begun:
            raise RuntimeError("The position is set before the first batch is taken: make a new iterator.")
        self._position = position or None
        self.index = int(position.get("batch", 0))
        self._first = (self.index, int(position.get("row", 0)))

    def _watch(self) -> None:
        """A fetch that began to draw another kind of number late is followed from here on."""
        idle = tuple(kind for kind in randomness.KINDS if kind not in self._ahead)
        if not idle:
            return
        now = randomness.capture(idle)
        if self._untouched is not None:
            moved = [k for k in idle if not _alike(k, now[k], self._untouched.get(k))]
            self._ahead = tuple(k for k in randomness.KINDS if k in self._ahead or k in moved)
        self._untouched = now

    def _run(self) -> Generator[Any, None, None]:
        self._begun = True
        items, pending = self._open()
        try:
            if self.own:
                items = self._agreed(items)
            if pending is None and not self._ahead:
                before = randomness.fingerprint()
                pending = next(items, None)
                if pending is None:
                    return
                self._ahead = randomness.drawn(before, randomness.fingerprint())
            if self._ahead:
                yield from self._one_ahead(items, pending)
                return
            if pending is not None:
                yield self._hand_out(pending)
                pending = None
            for batch, dealt, rows in items:
                self.index += 1
                self.rows = rows
                self.weight = dealt[1]
                self.shares = dealt[2]
                yield batch
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _hand_out(self, item: Item) -> Any:
        batch, (_, self.weight, self.shares), self.rows = item
        self.index += 1
        return batch

    def _one_ahead(self, items: Iterator[Item], current: Item | None) -> Iterator[Any]:
        self._untouched = randomness.capture(tuple(k for k in randomness.KINDS if k not in self._ahead))
        while current is not None:
            if self._stateful is not None:
                self._before_data = self._stateful.state_dict()
            self._before = randomness.capture(self._ahead)
            following = next(items, None)
            if following is None:
                self._before = None
            yield self._hand_out(current)
            current = following

    def _open(self) -> tuple[Iterator[Item], Item | None]:
        """The items that remain, and the one that had been fetched ahead when the position was taken."""
        loader, position = self.dataloader, self._position
        set_epoch(loader, self.epoch)
        now = None if position is None else randomness.capture()
        plain = self.kind == MAP and needs_no_state(loader)
        generators = generators_of(loader)
        if position is None:
            if not plain:
                self._start = randomness.capture()
        elif "start" in position:
            self._start = randomness.from_json(position["start"])
            randomness.restore(self._start)
            for generator, text in zip(generators, position.get("generators", []), strict=False):
                generator.set_state(randomness.text_to_tensor(text))
        self._generators = [] if plain else [generator.get_state() for generator in generators]
        before_draw = randomness.torch.get_rng_state()

        items: Iterator[Item]
        if self.kind == MAP:
            seeds = None
            if position is not None and "start" not in position:
                seeds = (position["base_seed"], position["seed"])
            order = map_order(loader, self.processes, self.world, seeds)
            self._seeds = (order.base_seed, order.seed)
            if order.rows is not None:
                self._group = order.batch_size * self.world
            remaining = order.dealt(*self._first, self.world, self.rank)
            if loader.num_workers:
                exact = (
                    before_draw if position is None and self.rank == 0 and loader.generator is None else None
                )
                items = worker_items(
                    loader,
                    remaining,
                    lambda: order.dealt(*self._first, self.world, self.rank),
                    exact,
                    order.base_seed + self.index + self.processes.rank,
                )
            else:
                items = map_items(loader, remaining)
        else:
            items = self._open_stream(position)

        pending = None
        if position is not None:
            self._ahead = tuple(position.get("ahead", ()))
            if "pending" in position:
                randomness.restore(randomness.from_json(position["pending"]))
                pending = next(items, None)
            assert now is not None
            randomness.restore(now)
        return items, pending

    def _open_stream(self, position: Position | None) -> Iterator[Item]:
        """Iterable datasets and loaders that iterate themselves."""
        loader = self.dataloader
        self._stateful = stateful(loader, self.kind == ITERABLE)
        done = self.index
        if position is not None and "dataset" in position and self._stateful is not None:
            self._stateful.load_state_dict(position["dataset"])
            done = 0
        if self.kind == ITERABLE:
            return iterable_items(loader, self.world, self.rank, done)
        return skip(foreign_items(loader), done)

    def _agreed(self, items: Iterator[Item]) -> Iterator[Item]:
        """Batches of ranks that have a loader each: all go on until the last has none left."""
        last: Any = None
        processes = self.processes
        while True:
            item = next(items, None)
            rows = 0 if item is None else max(item[2], 1)
            counts = tuple(gather_counts(rows, processes))
            if not any(counts):
                return
            if item is None:
                if last is None:
                    raise RuntimeError(
                        f"Rank {processes.rank} has no data at all while others have: split them evenly."
                    )
                yield first_row(last), Dealt(None, 0.0, counts), 0
                continue
            last = item[0]
            yield last, Dealt(None, rows * len(counts) / sum(counts), counts), item[2]


def foreign_items(loader: Any) -> Iterator[Item]:
    """The batches of a loader that iterates itself."""
    for batch in loader:
        rows = find_batch_size(batch) or 0
        yield batch, Dealt(None, 1.0, (rows,)), rows


def set_epoch(loader: Any, epoch: int) -> None:
    """Tells the epoch to whatever of the loader asks for it."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (
        loader,
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(loader, "sampler", None),
        getattr(loader, "dataset", None),
    )
    told: list[Any] = []
    for owner in owners:
        if hasattr(owner, "set_epoch") and not any(owner is other for other in told):
            owner.set_epoch(epoch)
            told.append(owner)


def _alike(kind: str, one: Any, other: Any) -> bool:
    return other is not None and randomness.to_json({kind: one}) == randomness.to_json({kind: other})


class EpochIterator(BatchIterator):
    """One epoch of training.

    Args:
        dataloader: as for `BatchIterator`.
        args: with `ignore_data_skip` the epoch begins anew, whatever the position.
        processes: as for `BatchIterator`.
        epoch: the epoch, from 0.
        position: where to go on.
    """

    def __init__(
        self, dataloader: Any, *, args: Any, processes: Any, epoch: int, position: Position | None = None
    ) -> None:
        if getattr(args, "ignore_data_skip", False):
            position = None
        super().__init__(dataloader, processes=processes, epoch=epoch, position=position)


class EvaluationIterator(BatchIterator):
    """One pass over an evaluation set: the loader's own order, every row once, whatever the world."""

    def true_shares(self, rows: int) -> tuple[int, ...]:
        """Rows of each rank of the batch handed out last. A collective where nobody knows them beforehand.

        Args:
            rows: this rank's, 0 where it ran a row for company.
        """
        if self.shares and not self.own:
            return self.shares
        return tuple(gather_counts(rows, self.processes))
