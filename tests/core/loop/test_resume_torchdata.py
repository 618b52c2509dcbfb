"""torchdata's StatefulDataLoader, as a script's loader: it tells its state, and goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import resumed_from_everywhere
from support.toy import rows, trainer
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from drivetrain import Trainer

# torchdata 0.11 calls what torch 2.13 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

DATA = rows(14)


class Counted(Dataset[Any]):
    """Counts, over all processes, the rows that are asked for."""

    def __init__(self) -> None:
        self.read = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, i: int) -> Any:
        self.read += 1
        return DATA[i]


class Stream(IterableDataset[Any]):
    """Rows from where it is, split over the workers. The state of its end means that nothing is left."""

    def __init__(self) -> None:
        self.read = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.start = self.at = 0

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        id, number = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        self.at, self.start = self.start, 0
        return self.rest(DATA[id::number])

    def rest(self, mine: list[Any]) -> Iterator[Any]:
        while self.at < len(mine):
            self.read += 1
            self.at += 1
            yield mine[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.at = state["at"]


def noisy(features: list[Any]) -> dict[str, torch.Tensor]:
    x = torch.stack([feature["x"] for feature in features])
    labels = torch.tensor([feature["labels"] for feature in features])
    return {"x": x + 0.1 * torch.randn(x.shape), "labels": labels}


def loading(**options: Any) -> type[Trainer]:
    """A trainer whose loader is torchdata's."""

    class Loading(Trainer):
        def get_train_dataloader(self) -> Any:
            loader: Any = StatefulDataLoader(self.train_dataset, batch_size=4, **options)
            LOADERS.append(loader)
            return loader

    return Loading


LOADERS: list[Any] = []


@pytest.fixture(autouse=True)
def workers_end() -> Iterator[None]:
    """Its workers end with it, whenever that may be; here they would stay beside many other tests."""
    yield
    while LOADERS:
        iterator = LOADERS.pop()._iterator
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "in order": lambda: {"data": Counted(), "cls": loading()},
    "shuffled": lambda: {"data": Counted(), "cls": loading(shuffle=True, collate_fn=noisy)},
    "shuffled, two workers": lambda: {"data": Counted(), "cls": loading(shuffle=True, num_workers=2)},
    "stream": lambda: {"data": Stream(), "cls": loading(collate_fn=noisy), "max_steps": 10},
    "stream, two workers": lambda: {"data": Stream(), "cls": loading(num_workers=2), "max_steps": 10},
}


def build(folder: Path, values: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_dataset": rows(8, seed=1),
        "dropout": 0.1,
    }
    return trainer(folder, **settings, **values)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_resumed_from_everywhere(tmp_path: Path, scenario: str) -> None:
    resumed_from_everywhere(tmp_path, lambda folder: build(folder, SCENARIOS[scenario]()))


def test_nothing_that_was_seen_is_read_again(tmp_path: Path) -> None:
    build(tmp_path, SCENARIOS["stream"]()).train()
    again = build(tmp_path / "again", SCENARIOS["stream"]() | {"max_steps": 4})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.train_dataset.read.item() == len(DATA) - 8
