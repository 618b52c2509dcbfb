"""One pass over the data of a loader, from any position in it.

A plain loader without workers is read here, row by row, without torch's own iterator: the same rows, the same
draws, and less work a batch. With workers torch's iterator is given the batches that remain.

Loaders that the Trainer made fetch one batch ahead, as they did in transformers 4.34.0, so that the draws of
the data (a collator that masks at random, say) and those of the model fall in the same order. The random state
from before that fetch is kept, of the kinds that fetching draws from, so that a resumed run fetches the same
batch again. Iterable data that tell their state would do so for every batch that is fetched ahead; they are
spared that where their first batch draws nothing. A loader of the user's own is read as it is.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

import torch

from drivetrain.data import randomness
from drivetrain.data.carrying import carried, carry_over, set_generators
from drivetrain.data.dealing import Dealt, Split
from drivetrain.data.device import first_row
from drivetrain.data.fetching import foreign_items, iterable_items, map_items, skip, stateful
from drivetrain.data.loader import fetches_ahead
from drivetrain.data.position import Position, PositionHere, holds, of_rank, together
from drivetrain.data.samplers import has_length
from drivetrain.data.source import (
    FOREIGN,
    ITERABLE,
    MAP,
    batches_of,
    generators_of,
    group_of,
    is_split_already,
    kind_of,
    map_order,
    needs_no_state,
)
from drivetrain.data.stream import next_pass
from drivetrain.data.workers import Workers, workers_of
from drivetrain.errors import ConfigurationError
from drivetrain.gathering import gather_counts
from drivetrain.trust import taken_from_checkpoint

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
        split: how a global batch is cut; by default it is one batch of each process.

    Attributes:
        batches: batches of this rank in the pass, None where the data have no length.
        index: batches handed out. Of a global batch a rank has one, or as many as `split` says.
        weight: rows of this rank * world / rows of all, of the batch handed out last; 1.0 in one process.
        rows: its rows on this rank (0 where the rank runs a row for company).
        shares: its rows on each rank; `()` where they are not known.
    """

    noted = True
    """Whether the position will be asked for."""

    def __init__(
        self,
        dataloader: Any,
        *,
        processes: Any,
        epoch: int = 0,
        position: Position | None = None,
        split: Split | None = None,
    ) -> None:
        self.dataloader = dataloader
        self.processes = processes
        self.epoch = epoch
        self.kind = kind_of(dataloader)
        # A loader that iterates itself, or is split over the ranks already, is every rank's own.
        self.own = processes.world_size > 1 and (self.kind == FOREIGN or is_split_already(dataloader))
        split = split or Split(processes.world_size)
        self.split = Split() if self.own else split
        # A process that runs several parts of a global batch stands for as many ranks, one after another.
        self.world = 1 if self.own else processes.world_size * split.parts
        self.ranks = (0,) if self.own else range(processes.rank, self.world, processes.world_size)
        self.batch_size: int | None = None  # of a rank, where it is not that of the loader
        if self.world != self.split.world and getattr(dataloader, "batch_size", None):
            self.batch_size = dataloader.batch_size * self.split.world // self.world
        self.batches = batches_of(dataloader, self.split.world)
        if self.batches is not None:
            self.batches *= self.split.parts
        self.index = 0
        self.weight = 1.0
        self.rows = 0
        self.shares: tuple[int, ...] = ()
        self._group = group_of(dataloader, self.split.world)
        self._seeds: tuple[int, int | None] | None = None
        self._permutation = 0
        self._start: Any = None
        self._generators: list[Any] = []
        self._ahead: tuple[str, ...] = ()
        self._before: Any = None
        self._untouched: Any = None
        self._before_data: Any = None
        self._stateful: Any = None
        self._workers: Workers | None = None
        self._is_ahead = False
        self._begun = False
        self._told = False
        self._ended = False
        self._first = (0, 0)
        self.set_position(position or {})
        self._iterator = self._run()

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def __next__(self) -> Any:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the pass: workers stop."""
        self._iterator.close()

    def position(self) -> Position:
        """The position after the batch handed out last; see `drivetrain.data.position`.

        A collective where there are several ranks.
        """
        return together(self.position_here(), self.processes)

    def position_here(self) -> PositionHere:
        """The same as far as this rank knows it; asks no other."""
        if not self._begun:
            return self._given, None
        batch, row = self._first
        parts = self.split.parts
        position: Position = {
            "batch": self.index // parts,
            "row": row + (self.index - batch) // parts * self._group,
            "group": self._group,
            "epoch": self.epoch,
            "world": self.processes.world_size,
        }
        if self._seeds is not None:
            position["base_seed"], position["seed"] = self._seeds
            if self._permutation:
                position["permutation"] = self._permutation
        return position, self._own_position()

    def _own_position(self) -> Position:
        """What differs from rank to rank."""
        if self._has_ended():
            own: Position = {"ended": True, "generators": self._generators_now()}
            if self._workers is not None and self.dataloader.persistent_workers:
                self._add_workers(own, self._workers)
            if self._stateful is not None:
                self._add_data(own, copy.deepcopy(self._stateful.state_dict()))
            return own
        own = {}
        if self._start is not None:
            own["start"] = randomness.to_json(self._start)
        if self._generators:
            own["generators"] = [randomness.tensor_to_text(state) for state in self._generators]
            own["now"] = self._generators_now()
        if self._is_ahead:
            own["ahead"] = list(self._ahead)
            if self._before is not None:
                own["pending"] = randomness.to_json(self._before)
            self._watch()
        if self._workers is not None:
            self._add_workers(own, self._workers)
        if self._stateful is not None:
            # A copy, since the state may be made of the very lists that the data set goes on to change.
            state = self._before_data if self._is_ahead else copy.deepcopy(self._stateful.state_dict())
            self._add_data(own, state)
        return own

    def _generators_now(self) -> list[str]:
        return [
            randomness.tensor_to_text(generator.get_state()) for generator in generators_of(self.dataloader)
        ]

    def _add_workers(self, own: Position, workers: Workers) -> None:
        states = workers.to_json(lambda _: self._cannot_hold(self.dataloader.dataset))
        if states is not None:
            own["workers"] = states

    def _add_data(self, own: Position, state: Any) -> None:
        if holds(state):
            own["dataset"] = state
        else:
            self._cannot_hold(self._stateful)

    def _cannot_hold(self, owner: Any) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "state_dict() of %s is not made of numbers, strings, lists, dictionaries and tensors alone, which a "
                "checkpoint holds, so a resume reads the epoch again.",
                type(owner).__name__,
            )

    def _has_ended(self) -> bool:
        """Whether the batch handed out last is known to be the last of the pass."""
        if self._ended:
            return True
        if self.kind != ITERABLE:
            return self.batches is not None and self.index >= self.batches
        # The length of an iterable dataset may be a guess; and each worker's last batch may be short.
        loader = self.dataloader
        short = bool(self.shares) and sum(self.shares) < self._group
        return short and loader.batch_size is not None and not loader.num_workers

    def set_position(self, position: Position) -> None:
        """Goes on from a position; before the first batch is taken."""
        if self._begun:
            raise RuntimeError("The position is set before the first batch is taken: make a new iterator.")
        self._given = position
        self._position = (
            of_rank(position, self.processes.rank, self.processes.world_size) if position else None
        )
        parts = self.split.parts
        self.index = int(position.get("batch", 0)) * parts
        row = int(position.get("row", 0))
        if position and position["group"] != self._group:
            # The global batch has another size now; what was seen stays seen.
            self.index = row // self._group * parts
            left = batches_of(self.dataloader, self.split.world, row)
            if self.batches is not None and left is not None:
                self.index = self.batches - left * parts
            if self._position is not None:
                self._position.pop("workers", None)  # their batches were others
        self._first = (self.index, row)

    def _watch(self) -> None:
        """A fetch that began to draw another kind of number late is followed from here on."""
        idle = tuple(kind for kind in randomness.KINDS if kind not in self._ahead)
        if not idle:
            return
        now = randomness.capture(idle)
        if self._untouched is not None:
            moved = [k for k in idle if not randomness.same(k, now[k], self._untouched[k])]
            self._ahead = tuple(k for k in randomness.KINDS if k in self._ahead or k in moved)
        self._untouched = now

    def _run(self) -> Generator[Any, None, None]:
        if self._position is not None and self._position.get("ended"):
            carry_over(self.dataloader, self._position, self.processes)
            return
        if self._position is None:
            items, current = self._open()
        else:
            with taken_from_checkpoint("The position in the data"):
                items, current = self._open()
        self._begun = True
        try:
            if current is None:
                before = randomness.capture()
                current = next(items, None)
                if self._position is None:
                    self._ahead = randomness.drawn(before, randomness.capture())
                    # Loaders of which each rank has its own agree on every batch, so all must fetch in step.
                    draws = self._any_ahead() if self.own else bool(self._ahead)
                    self._is_ahead = fetches_ahead(self.dataloader) and (draws or self._stateful is None)
                    if self._is_ahead and "torch" not in self._ahead:
                        # Rows that draw now and then draw from torch most often, whose state takes 1 µs.
                        self._ahead = ("torch", *self._ahead)
                if current is None:
                    return
            if self._is_ahead:
                yield from self._one_ahead(items, current)
                return
            yield self._hand_out(current)
            for batch, dealt, rows in items:
                self.index += 1
                self.rows = rows
                self.weight = dealt[1]
                self.shares = dealt[2]
                yield batch
            self._ended = True
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _any_ahead(self) -> bool:
        return any(gather_counts(len(self._ahead), self.processes))

    def _hand_out(self, item: Item) -> Any:
        batch, (_, self.weight, self.shares), self.rows = item
        self.index += 1
        return batch

    def _one_ahead(self, items: Iterator[Item], current: Item | None) -> Iterator[Any]:
        self._untouched = randomness.capture(tuple(k for k in randomness.KINDS if k not in self._ahead))
        while current is not None:
            if self._stateful is not None:
                self._before_data = copy.deepcopy(self._stateful.state_dict())
            self._before = randomness.capture(self._ahead)
            following = next(items, None)
            if following is None:
                self._before, self._ended = None, True
            yield self._hand_out(current)
            current = following

    def _open(self) -> tuple[Iterator[Item], Item | None]:
        """The items that remain, and the one that had been fetched ahead when the position was taken."""
        loader, position = self.dataloader, self._position
        set_epoch(loader, self.epoch)
        now = None if position is None else randomness.capture()
        plain = self.kind == MAP and needs_no_state(loader)
        if position is None:
            if not plain:
                self._start = randomness.capture()
        elif "start" in position:
            self._start = randomness.from_json(position["start"])
            randomness.restore(self._start)
            set_generators(loader, position.get("generators", []))
        self._generators = [] if plain else [generator.get_state() for generator in generators_of(loader)]
        before = carried(loader) if position is None else position
        if self.kind != FOREIGN and loader.num_workers:
            self._workers = self._open_workers(before.get("workers"))

        items: Iterator[Item]
        if self.kind == MAP:
            seeds = None
            if position is not None and "start" not in position:
                seeds = (position["base_seed"], position["seed"])
                self._permutation = int(position.get("permutation", 0))
            workers = self._workers
            kept = workers.base_seed if workers is not None and workers.passes > 1 else None
            order = map_order(loader, self.processes, self.world, seeds, self._permutation, kept)
            self._seeds = (order.base_seed, order.seed)
            remaining = order.dealt(self._first[1], self.world, self.ranks, self.batch_size)
            if workers is None:
                items = map_items(loader, remaining)
            else:
                if workers.seeded_from is None:
                    workers.base_seed = order.base_seed
                    if position is None and self.processes.rank == 0:
                        workers.seeded_from = order.drawn_from
                    else:  # on other ranks, and with other workers after a resume
                        seed = order.base_seed + self.index + self.processes.rank
                        workers.seeded_from = torch.Generator().manual_seed(seed % 2**63).get_state()
                items = workers.read_rows(loader, remaining)
        else:
            items = self._open_stream(before)

        if self.own and not self._is_even():
            items = self._agreed(items)
        pending = None
        if position is not None:
            self._is_ahead = "ahead" in position
            self._ahead = tuple(position.get("ahead", ()))
            if "pending" in position:
                randomness.restore(randomness.from_json(position["pending"]))
                pending = next(items, None)
            assert now is not None
            randomness.restore(now)
        return items, pending

    def _open_workers(self, saved: Any) -> Workers:
        """The workers, and a word where they cannot go on with the random numbers that they had."""
        workers = workers_of(self.dataloader, saved, self._position is None, self.noted)
        if saved and not workers.resumed and any(worker["random"] for worker in saved["each"]):
            logger.warning(
                "The checkpoint is of a run with %d workers, and %d go on: the random numbers that they draw are "
                "fresh ones.",
                len(saved["each"]),
                len(workers.each),
            )
        return workers

    def _open_stream(self, before: Position) -> Iterator[Item]:
        """Iterable datasets and loaders that iterate themselves.

        Args:
            before: the position where the pass goes on; of one that begins, what the pass before it left.
        """
        loader = self.dataloader
        self._stateful = stateful(loader, self.kind == ITERABLE)
        done, rows = self._first
        again = False
        if "dataset" in before and self._stateful is not None:
            self._stateful.load_state_dict(before["dataset"])
            done = rows = 0
            again = self._position is None
        if self.kind == ITERABLE:
            size = self.batch_size or loader.batch_size
            return iterable_items(loader, self.world, self.ranks, size, done, rows, self._workers, again)
        if again:
            return next_pass(lambda: foreign_items(loader), generators_of(loader))
        return skip(foreign_items(loader), done)

    def _is_even(self) -> bool:
        """Whether every rank's loader is of one length, as a DistributedSampler makes it."""
        sampler = getattr(self.dataloader, "sampler", None)
        rows = len(sampler) if self.kind == MAP and sampler is not None and has_length(sampler) else -1
        counts = gather_counts(rows, self.processes)
        return rows >= 0 and len(set(counts)) == 1

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
        tell = getattr(owner, "set_epoch", None)
        if callable(tell) and not any(owner is other for other in told):
            tell(epoch)
            told.append(owner)


class EpochIterator(BatchIterator):
    """One epoch of training.

    Args:
        dataloader: as for `BatchIterator`.
        args: with `ignore_data_skip` the epoch begins anew, whatever the position.
        processes: as for `BatchIterator`.
        epoch: the epoch, from 0.
        position: where to go on.
        split: how a global batch is cut.

    Raises:
        ConfigurationError: the data are empty, or `drop_last` drops them all.
    """

    def __init__(
        self,
        dataloader: Any,
        *,
        args: Any,
        processes: Any,
        epoch: int,
        position: Position | None = None,
        split: Split | None = None,
    ) -> None:
        if getattr(args, "ignore_data_skip", False):
            position = None
        super().__init__(dataloader, processes=processes, epoch=epoch, position=position, split=split)
        if self.batches == 0 and has_length(getattr(dataloader, "dataset", None)):
            raise ConfigurationError(
                f"The training data have {len(dataloader.dataset)} rows, which fill no batch, and "
                "dataloader_drop_last=True drops what is short: lower per_device_train_batch_size, or set "
                "dataloader_drop_last=False."
                if len(dataloader.dataset)
                else "The training dataset is empty: give train_dataset at least one row."
            )


class EvaluationIterator(BatchIterator):
    """One pass over an evaluation set: the loader's own order, every row once, whatever the world."""

    noted = False

    def true_shares(self, rows: int) -> tuple[int, ...]:
        """Rows of each rank of the batch handed out last. A collective where nobody knows them beforehand.

        Args:
            rows: this rank's, 0 where it ran a row for company.
        """
        if self.shares and not self.own:
            return self.shares
        return tuple(gather_counts(rows, self.processes))
