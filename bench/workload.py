"""What every engine trains in `overhead.py`: a model too small to hide the trainer, and four kinds of data.

The model carries the clock. An engine is timed between calls of the model, after a warm-up: set-up is left out,
and everything between two forward passes (data, backward, clipping, optimizer, scheduler, logging, the engine
itself) is in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

FEATURES, HIDDEN, CLASSES = 64, 128, 10
BATCH, BATCHES_AN_EPOCH = 32, 250
WARM_UP = 100
WINDOW = BATCHES_AN_EPOCH  # so that each has the cost of one epoch's end and of as many rows of the log
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM, LOG_EVERY = 1e-3, 0.01, 1.0, 50


class Clock:
    """Wall and processor time of every `WINDOW` calls; after the last of them it is `done`.

    Attributes:
        total: how many updates a run needs so that the last window is closed.
        windows: (wall, processor) microseconds a step of each window.
    """

    def __init__(self, windows: int) -> None:
        self.total = WARM_UP + windows * WINDOW + 1
        self.calls = 0
        self.stamps: list[tuple[float, float]] = []

    def tick(self) -> None:
        if self.calls >= WARM_UP and (self.calls - WARM_UP) % WINDOW == 0:
            self.stamps.append((time.perf_counter(), time.process_time()))
        self.calls += 1

    @property
    def windows(self) -> list[tuple[float, float]]:
        if self.calls != self.total:
            raise RuntimeError(f"the engine made {self.calls} steps of {self.total}")
        pairs = zip(self.stamps, self.stamps[1:], strict=False)
        return [((b[0] - a[0]) / WINDOW * 1e6, (b[1] - a[1]) / WINDOW * 1e6) for a, b in pairs]


class Classifier(nn.Module):
    """Three linear layers; `forward(x, labels)` gives the loss and the logits, as the trainers expect it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, CLASSES)
        self.clock = clock

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.clock.tick()
        logits = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, Any]]):
    """A map-style data set of rows, one dictionary each."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Batches(Dataset[Any]):
    """Columns as tensors, and a whole batch at a time by torch's `__getitems__`."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"x": self.x[indices], "labels": self.labels[indices]}


def pairs_to_batch(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    x, labels = zip(*pairs, strict=True)
    return {"x": torch.stack(x), "labels": torch.stack(labels)}


def as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Workload:
    """A data set with its collator; None is the engine's own default, or torch's where it has none."""

    name: str
    dataset: Any
    collate: Callable[[Any], Any] | None

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, BATCH, shuffle=True, collate_fn=self.collate or default_collate)


def workloads() -> dict[str, Workload]:
    """The kinds of data, by name. They hold the same numbers; a random teacher gave the labels, so that there is
    something to learn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH * BATCHES_AN_EPOCH, FEATURES, generator=generator)
    labels = (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)
    rows = [{"x": row.clone(), "labels": label.clone()} for row, label in zip(x, labels, strict=True)]
    plain = [{"x": row.numpy(), "labels": int(label)} for row, label in zip(x, labels, strict=True)]
    all_of_them = (
        Workload("rows", Rows(rows), default_collate),
        Workload("list", plain, None),
        Workload("pairs", TensorDataset(x, labels), pairs_to_batch),
        Workload("batches", Batches(x, labels), as_it_is),
    )
    return {workload.name: workload for workload in all_of_them}


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader
