"""A global batch keeps its rows when another number of processes runs it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from drivetrain.data import EpochIterator, LengthGroupedSampler, Split
from drivetrain.data.dealing import dealt_batches, dealt_rows, dealt_units, interleaved

ARGS = SimpleNamespace(ignore_data_skip=False)
DATA = list(range(53))
SIZE = 4  # rows of a process, of the two processes that the run began with


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(DATA)


class Batches:
    """A batch sampler of its own kind."""

    def __iter__(self) -> Any:
        for first in range(0, len(DATA), SIZE):
            yield DATA[first : first + SIZE]

    def __len__(self) -> int:
        return -(-len(DATA) // SIZE)


LOADERS = {
    "in order": lambda: DataLoader(DATA, SIZE, collate_fn=list),
    "shuffled": lambda: DataLoader(DATA, SIZE, shuffle=True, collate_fn=list),
    "drop_last": lambda: DataLoader(DATA, SIZE, shuffle=True, drop_last=True, collate_fn=list),
    "by length": lambda: DataLoader(
        DATA, SIZE, sampler=LengthGroupedSampler(8, lengths=DATA), collate_fn=list
    ),
    "workers": lambda: DataLoader(DATA, SIZE, shuffle=True, num_workers=1, collate_fn=list),
    "stream": lambda: DataLoader(Stream(), SIZE, collate_fn=list),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=Batches(), collate_fn=list),
}


def epoch(name: str, parts: int, position: Any = None) -> EpochIterator:
    processes = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    return EpochIterator(
        LOADERS[name](), args=ARGS, processes=processes, epoch=0, position=position, split=Split(2, parts)
    )


# Whole batches of a sampler's own cannot be cut: `check_loader` refuses more processes for them.
@pytest.mark.parametrize(
    ("name", "parts"),
    [(name, parts) for name in LOADERS for parts in (2, 4) if (name, parts) != ("batch sampler", 4)],
)
def test_one_process_runs_the_batches_of_two(name: str, parts: int) -> None:
    """Each global batch comes in parts; every row of it counts the same, whatever part it is in."""
    torch.manual_seed(1)
    iterator = epoch(name, parts)
    seen: list[list[int]] = []
    weights: list[list[float]] = []
    for number, batch in enumerate(iterator):
        if number % parts == 0:
            seen.append([])
            weights.append([])
        if iterator.weight:
            seen[-1] += batch
            weights[-1] += [iterator.weight / len(batch) / parts] * len(batch)
    torch.manual_seed(1)
    group = DataLoader(DATA, 2 * SIZE)
    whole = LOADERS[name]()
    order = [row for batch in whole for row in batch]
    expected = [order[first : first + 2 * SIZE] for first in range(0, len(order), 2 * SIZE)]
    if name == "drop_last":
        expected = [batch for batch in expected if len(batch) == 2 * SIZE]
    assert len(group) == 7
    assert seen == expected
    for rows, each in zip(seen, weights, strict=True):
        assert each == pytest.approx([1 / len(rows)] * len(rows))
    if iterator.batches is not None:
        assert iterator.batches == iterator.index == len(expected) * parts


@pytest.mark.parametrize("name", ["in order", "shuffled", "by length", "stream", "batch sampler"])
def test_a_position_counts_global_batches(name: str) -> None:
    """What two parts wrote, another number of parts reads, and the rest of the epoch is the same rows."""
    torch.manual_seed(2)
    first = epoch(name, 2)
    for _ in range(6):
        next(first)
    position = json.loads(json.dumps(first.position()))
    assert position["batch"] == 3
    rest = [row for batch in first if first.weight for row in batch]
    for parts in (2,) if name == "batch sampler" else (1, 2, 4):
        torch.manual_seed(99)
        processes_of = epoch(name, parts, position) if parts > 1 else None
        if processes_of is None:
            processes = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
            loader = LOADERS[name]()
            processes_of = EpochIterator(
                loader, args=ARGS, processes=processes, epoch=0, position=position, split=Split(2, 1)
            )
        assert [row for batch in processes_of if processes_of.weight for row in batch] == rest, parts
        if processes_of.batches is not None:
            assert processes_of.index == processes_of.batches


def test_streams_are_interleaved() -> None:
    order = range(10)
    both = interleaved([dealt_rows(order, 0, 2, False, 2, rank) for rank in (0, 1)])
    assert [item.rows for item in both] == [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9]]
    batches = [[0, 1], [2, 3], [4, 5]]
    both = interleaved([dealt_batches(iter(batches), 2, rank) for rank in (0, 1)])
    assert [(item.rows, item.weight) for item in both] == [([0, 1], 1), ([2, 3], 1), ([4], 1), ([5], 1)]
    both = interleaved([dealt_units(iter("abc"), 2, rank) for rank in (0, 1)])
    assert [(item.rows, item.weight) for item in both] == [("a", 1), ("b", 1), ("c", 2), ("c", 0)]
