"""With workers too a resumed run ends, bit for bit, as the run that never stopped: from every checkpoint of it."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.resuming import resumed_from_everywhere
from support.toy import rows, trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from drivetrain import Trainer

ROWS = 14
DATA = rows(ROWS)


def noise(kinds: str = "torch numpy python") -> Any:
    """A number that each of some generators had a part in; an odd number of normal ones of NumPy's and Python's."""
    number = 0.0
    if "torch" in kinds:
        number += torch.randn(1).item()
    if "numpy" in kinds:
        number += np.random.randn()
    if "python" in kinds:
        number += random.gauss(0, 1)
    return 0.1 * number


def collate(features: list[Any]) -> dict[str, torch.Tensor]:
    return {
        "x": torch.stack([feature["x"] for feature in features]),
        "labels": torch.tensor([feature["labels"] for feature in features]),
    }


def noisy(features: list[Any]) -> dict[str, torch.Tensor]:
    batch = collate(features)
    return batch | {"x": batch["x"] + noise()}


class Rows(Dataset[Any]):
    """Rows that draw of some generators, all of them or some."""

    def __init__(self, kinds: str, every: int = 1) -> None:
        self.kinds, self.every = kinds, every

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        row = dict(DATA[i])
        if i % self.every == 0:
            row["x"] = row["x"] + noise(self.kinds)
        return row


class Batches(Dataset[Any]):
    """Whose items are batches already."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return DATA[3 * i : 3 * i + 3]


class Lengths(Rows):
    """Rows of many lengths, for group_by_length."""

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i) | {"input_ids": [0] * (1 + (7 * i) % 13)}


class Stream(IterableDataset[Any]):
    """Noisy rows in an order that each worker draws for each pass; worker 0 has fewer than the others.

    Counts the rows that were read, in all processes.
    """

    def __init__(self) -> None:
        self.read = torch.zeros(1, dtype=torch.int64).share_memory_()

    def order(self) -> list[int]:
        worker = get_worker_info()
        id, number = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        mine = [i for i in range(id, ROWS, number) if number == 1 or id or i % 4]
        return [mine[i] for i in torch.randperm(len(mine)).tolist()]

    def __iter__(self) -> Iterator[Any]:
        return self.rows_of(self.order())

    def rows_of(self, order: list[int]) -> Iterator[Any]:
        for i in order:
            self.read += 1
            row = dict(DATA[i])
            row["x"] = row["x"] + noise()
            yield row


class Stateful(Stream):
    """Tells its order and place; goes back to the beginning when it has come to its end.

    A state that outlives a pass decides how the rows are scaled.
    """

    def __init__(self, ballast: int = 0) -> None:
        super().__init__()
        self.left: list[int] = []
        self.passes = 0
        self.ballast = ballast

    def __iter__(self) -> Iterator[Any]:
        if not self.left:
            self.left[:] = self.order()
            self.passes += 1
        return self.rest()

    def rest(self) -> Iterator[Any]:
        while self.left:
            row = next(self.rows_of([self.left.pop(0)]))
            yield row | {"x": row["x"] * self.passes}

    def state_dict(self) -> dict[str, Any]:
        # The very list that goes on to change; and a tensor, to be heavy.
        return {"left": self.left, "passes": self.passes, "ballast": torch.zeros(self.ballast)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left, self.passes = list(state["left"]), state["passes"]
        assert state["ballast"].numel() == self.ballast


class AtItsEnd(Stateful):
    """To this one the state of its end means that nothing is left, as in many a simple stream."""

    def __iter__(self) -> Iterator[Any]:
        order, start, self.start = list(range(ROWS)), self.start, 0
        return self.counted(order, start)

    start = at = 0

    def counted(self, order: list[int], start: int) -> Iterator[Any]:
        worker = get_worker_info()
        id, number = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        order = order[id::number]
        self.at = start
        for i in order[start:]:
            self.at += 1
            yield next(self.rows_of([i]))

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.at = state["at"]


def mark(worker: int) -> None:
    """A worker_init_fn that seeds in its own way, and looks at the worker's own data set."""
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, Rows)
    assert info.id == worker
    info.dataset.kinds += " torch numpy"
    np.random.seed((info.seed + 7) % 2**32)


def loading(**options: Any) -> type[Trainer]:
    """A trainer whose loader a script made; `generator` is a seed."""

    class Loading(Trainer):
        def get_train_dataloader(self) -> Any:
            given = dict(options)
            if "generator" in given:
                given["generator"] = torch.Generator().manual_seed(given["generator"])
            given.setdefault("collate_fn", noisy)
            given.setdefault("batch_size", 4)
            return DataLoader(self.train_dataset, **given)

    return Loading


PERSISTENT: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}

SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "collator": lambda: {"collator": noisy, "dropout": 0.1},
    "rows that draw of torch": lambda: {"data": Rows("torch"), "dropout": 0.1},
    "rows that draw of NumPy": lambda: {"data": Rows("numpy"), "dropout": 0.1},
    "rows that draw of Python": lambda: {"data": Rows("python"), "dropout": 0.1},
    "rows that draw now and then": lambda: {"data": Rows("torch numpy", every=7)},
    "group_by_length": lambda: {"data": Lengths("numpy torch"), "group_by_length": True},
    "accumulation": lambda: {"collator": noisy, "gradient_accumulation_steps": 3, "num_train_epochs": 3},
    "more workers than batches": lambda: {
        "collator": noisy, "per_device_train_batch_size": ROWS, "num_train_epochs": 4,
    },
    "token mean": lambda: {
        "collator": noisy, "loss_reduction": "tokens", "gradient_accumulation_steps": 2,
    },
    "the ends of epochs": lambda: {"collator": noisy, "save_strategy": "epoch"},
    "a script's worker_init_fn": lambda: {
        "data": Rows(""), "cls": loading(num_workers=2, shuffle=True, worker_init_fn=mark, prefetch_factor=4),
    },
    "a script's generator": lambda: {"cls": loading(num_workers=2, shuffle=True, generator=5)},
    "a script's generator, the ends of epochs": lambda: {
        "cls": loading(num_workers=2, shuffle=True, generator=5), "save_strategy": "epoch",
    },
    "without batches": lambda: {
        "data": Batches(),
        "cls": loading(num_workers=2, batch_size=None, shuffle=True, collate_fn=noisy),
    },
    "persistent": lambda: {"cls": loading(shuffle=True, **PERSISTENT), "dropout": 0.1},
    "persistent, the ends of epochs": lambda: {"cls": loading(shuffle=True, **PERSISTENT), "save_strategy": "epoch"},
    "persistent, a script's generator": lambda: {"cls": loading(shuffle=True, generator=5, **PERSISTENT)},
    "spawned": lambda: {
        "data": Rows("torch"), "cls": loading(num_workers=1, multiprocessing_context="spawn"), "max_steps": 4,
    },
    "stream": lambda: {"data": Stream(), "max_steps": 7},
    "stream, persistent": lambda: {"data": Stream(), "max_steps": 11, "cls": loading(**PERSISTENT)},
    "stream with a state": lambda: {"data": Stateful(), "max_steps": 7, "collator": noisy},
    "stream with a state, persistent": lambda: {
        "data": Stateful(), "max_steps": 11, "cls": loading(**PERSISTENT),
    },
    "stream with a heavy state": lambda: {"data": Stateful(40_000), "max_steps": 7, "collator": noisy},
    "stream with a state to its end": lambda: {"data": AtItsEnd(), "max_steps": 11, "cls": loading(**PERSISTENT)},
    "stream with a state, alone": lambda: {
        "data": Stateful(), "max_steps": 11, "dataloader_num_workers": 0, "collator": noisy,
    },
    "stream with a state to its end, alone": lambda: {
        "data": AtItsEnd(), "max_steps": 11, "dataloader_num_workers": 0,
    },
}  # fmt: skip


def build(folder: Path, values: dict[str, Any]) -> Any:
    values = dict(values)
    collator = values.pop("collator", None)
    cls = values.get("cls", Trainer)
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "data": DATA,
        "eval_dataset": rows(8, seed=1),
        "dataloader_num_workers": 2 if cls is Trainer else 0,
    }
    made = trainer(folder, **{**settings, **values})
    if collator is not None:
        made.data_collator = collator
    return made


@pytest.fixture(autouse=True)
def no_worker_outlives_training() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_resumed_from_everywhere(tmp_path: Path, scenario: str) -> None:
    resumed_from_everywhere(tmp_path, lambda folder: build(folder, SCENARIOS[scenario]()))
