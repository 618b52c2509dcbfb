"""How batches are fetched: here, by torch's workers, or from a stream."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from drivetrain.data.dealing import Dealt, deal, dealt_to, dealt_units
from drivetrain.data.device import find_batch_size

logger = logging.getLogger("drivetrain")


def collator(loader: Any) -> Callable[[Any], Any]:
    """The loader's collator, with pinning where it is asked for and there is an accelerator."""
    collate: Callable[[Any], Any] = loader.collate_fn
    if not (loader.pin_memory and torch.accelerator.is_available()):
        return collate
    accelerator = torch.accelerator.current_accelerator()
    device = accelerator.type if accelerator is not None else None
    if device == "mps":  # torch itself does not pin for it
        return collate
    return lambda rows: pin_memory(collate(rows), device)  # type: ignore[no-untyped-call]


def map_items(loader: Any, dealt: Iterator[Dealt]) -> Iterator[Any]:
    """Reads a map-style dataset in this process. The hot path: as little as can be for each batch."""
    dataset, collate = loader.dataset, collator(loader)
    if loader.batch_sampler is None:
        for item in dealt:
            batch = collate(dataset[item[0]])
            yield batch, item, find_batch_size(batch) or 0
        return
    if hasattr(dataset, "__getitems__") and dataset.__getitems__:
        get_many = dataset.__getitems__
        for item in dealt:
            rows = item[0]
            yield collate(get_many(rows)), item, len(rows) if item[1] else 0
        return
    get = dataset.__getitem__ if hasattr(type(dataset), "__getitem__") else lambda index: dataset[index]
    for item in dealt:
        rows = item[0]
        yield collate([get(row) for row in rows]), item, len(rows) if item[1] else 0


class _Remaining:
    """The batches that are left, as a batch sampler for torch; remembers how each was dealt."""

    def __init__(self, dealt: Iterator[Dealt]) -> None:
        self.dealt = dealt
        self.sent: deque[Dealt] = deque()

    def __iter__(self) -> Iterator[Any]:
        for item in self.dealt:
            self.sent.append(item)
            yield item[0]


_persistent: WeakKeyDictionary[Any, tuple[_Remaining, DataLoader[Any]]] = WeakKeyDictionary()


def worker_items(
    loader: Any,
    dealt: Iterator[Dealt],
    exact: torch.Tensor | None,
    seed: int,
) -> Iterator[Any]:
    """Has torch's workers read the batches that remain.

    Args:
        loader: map-style, with workers.
        dealt: what remains.
        exact: the generator's state from which torch draws the very base seed of this epoch.
        seed: seeds the workers where there is no such state: on other ranks, and after a resume, where they
            go on with random numbers that were not used before in this epoch.
    """
    remaining = _Remaining(dealt)
    generator = torch.Generator()
    if exact is not None:
        generator.set_state(exact)
    else:
        generator.manual_seed(seed % 2**63)
    shadow: DataLoader[Any]
    if loader.persistent_workers and loader in _persistent:
        remaining, shadow = _persistent[loader]
        remaining.dealt = dealt
        remaining.sent.clear()
    else:
        auto = loader.batch_sampler is not None
        options: dict[str, Any] = (
            {"batch_sampler": remaining} if auto else {"sampler": remaining, "batch_size": None}
        )
        shadow = DataLoader(
            loader.dataset,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory and torch.accelerator.is_available(),
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            **options,
        )
        if loader.persistent_workers:
            _persistent[loader] = (remaining, shadow)
    batched = loader.batch_sampler is not None
    for batch in shadow:
        item = remaining.sent.popleft()
        if batched:
            yield batch, item, len(item[0]) if item[1] else 0
        else:
            yield batch, item, find_batch_size(batch) or 0


class DealtStream(IterableDataset[Any]):
    """The rows of an iterable dataset, the parts of some ranks of each global batch at a time.

    Gives (what to collate, its `Dealt`). Without a batch size each item of the dataset is a batch already.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None,
        drop_last: bool,
        world: int,
        ranks: Sequence[int],
        done: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.world, self.ranks, self.done = world, ranks, done

    def __iter__(self) -> Iterator[tuple[Any, Dealt]]:
        # At once, not at the first row: the dataset may draw random numbers when its iterator is made.
        rows = iter(self.dataset)
        for _ in islice(rows, self.done):
            pass
        return self._deal(rows)

    def _deal(self, rows: Iterator[Any]) -> Iterator[tuple[Any, Dealt]]:
        if self.batch_size is None:
            for unit in dealt_to(self.ranks, dealt_units, rows, self.world):
                yield unit.rows, Dealt(None, unit.weight, ())
            return
        group = self.batch_size * self.world
        whole = (self.batch_size,) * self.world
        while batch := list(islice(rows, group)):
            if len(batch) < group and self.drop_last:
                return
            for rank in self.ranks:
                if len(batch) == group:
                    first = rank * self.batch_size
                    yield batch[first : first + self.batch_size], Dealt(None, 1.0, whole)
                else:
                    part = deal(batch, self.world, rank)
                    yield part.rows, Dealt(None, part.weight, part.shares)
            if len(batch) < group:
                return


class _CollateDealt:
    """Collates what `DealtStream` gives, in a worker."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, given: Any) -> tuple[Any, Any]:
        """The batch, and how its rows were dealt."""
        rows, dealt = given
        return self.collate(rows), dealt


def iterable_items(
    loader: Any, world: int, ranks: Sequence[int], batch_size: int | None, done: int, rows: int
) -> Iterator[Any]:
    """Reads an iterable dataset, after `done` batches of a rank, which are `rows` items of the dataset over all.

    Args:
        loader: of the dataset.
        world: number of ranks that a global batch is dealt out to.
        ranks: those whose batches are read here, of each global batch in this order.
        batch_size: rows of a rank; None for a dataset of batches.
        done, rows: what is left out.
    """
    if done:
        logger.warning(
            "Resuming reads %d batches of the training data again, since the dataset has no state_dict; "
            "give it state_dict and load_state_dict to spare that, or set ignore_data_skip=True.",
            done,
        )
    if not loader.num_workers:
        # torch draws the base seed first, then makes the dataset's iterator.
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        collate = collator(loader)
        stream = DealtStream(loader.dataset, batch_size, loader.drop_last, world, ranks, rows)
        parts = iter(stream)
        return ((collate(part), dealt, _rows(part, dealt)) for part, dealt in parts)
    if world == 1:
        return skip(foreign_items(loader), done, told=True)
    stream = DealtStream(loader.dataset, batch_size, loader.drop_last, world, ranks)
    shadow: DataLoader[Any] = DataLoader(
        stream,
        batch_size=None,
        num_workers=loader.num_workers,
        collate_fn=_CollateDealt(loader.collate_fn),
        pin_memory=loader.pin_memory and torch.accelerator.is_available(),
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )
    given = iter(shadow)
    return skip(
        ((batch, Dealt(*dealt), (find_batch_size(batch) or 0) if dealt[1] else 0) for batch, dealt in given),
        done,
        told=True,
    )


def foreign_items(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader that iterates itself, begun at once."""
    return _sized(iter(loader))


def _sized(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        rows = find_batch_size(batch) or 0
        yield batch, Dealt(None, 1.0, (rows,)), rows


def _rows(rows: Any, dealt: Dealt) -> int:
    return (len(rows) if hasattr(rows, "__len__") else 1) if dealt.weight else 0


def skip(items: Iterator[Any], done: int, told: bool = False) -> Iterator[Any]:
    """Runs through `done` items of a stream."""
    if done and not told:
        logger.warning(
            "Resuming reads %d batches of the training data again, since the loader has no state_dict; "
            "set ignore_data_skip=True to begin the epoch anew instead.",
            done,
        )
    for _ in islice(items, done):
        pass
    return items


def stateful(loader: Any, iterable: bool) -> Any:
    """What tells and sets the position of a stream: the loader, or its dataset if this process reads it."""
    owners = [loader]
    if iterable and not loader.num_workers:
        owners.append(loader.dataset)
    for owner in owners:
        if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict"):
            return owner
    return None
