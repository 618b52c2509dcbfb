"""How batches are fetched: row by row, from a stream, or from a loader that iterates itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from drivetrain.data.dealing import Dealt
from drivetrain.data.device import find_batch_size
from drivetrain.data.source import draw, state_of
from drivetrain.data.stream import DealtStream, is_stateful, next_pass
from drivetrain.data.workers import Workers

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


def iterable_items(
    loader: Any,
    world: int,
    ranks: Sequence[int],
    batch_size: int | None,
    done: int,
    rows: int,
    workers: Workers | None = None,
    again: bool = False,
) -> Iterator[Any]:
    """Reads an iterable dataset, after `done` batches of a rank, which are `rows` items of the dataset over all.

    Args:
        loader: of the dataset.
        world: number of ranks that a global batch is dealt out to.
        ranks: those whose batches are read here, of each global batch in this order.
        batch_size: rows of a rank; None for a dataset of batches.
        done, rows: what is left out.
        workers: those of the loader, where it has any.
        again: the dataset has been given the state of the end of the pass before.
    """
    reread = workers.reread if workers is not None and workers.resumed else done
    if reread:
        logger.warning(
            "Resuming reads %d batches of the training data again, since the dataset has no state_dict; "
            "give it state_dict and load_state_dict to spare that, or set ignore_data_skip=True.",
            reread,
        )
    # torch draws the base seed first, then makes the dataset's iterator.
    if workers is None:
        draw(loader.generator)
        collate = collator(loader)
        stream = DealtStream(loader.dataset, batch_size, loader.drop_last, world, ranks, rows)
        parts = next_pass(lambda: iter(stream)) if again else iter(stream)
        return ((collate(part), dealt, _rows(part, dealt)) for part, dealt in parts)
    if workers.seeded_from is None:
        workers.seeded_from = state_of(loader.generator)
    if workers.passes == 1:
        workers.base_seed = draw(loader.generator)
    items = workers.read_stream(
        loader, DealtStream(loader.dataset, batch_size, loader.drop_last, world, ranks)
    )
    return items if workers.resumed else skip(items, done, told=True)


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
    return next((owner for owner in owners if is_stateful(owner)), None)
