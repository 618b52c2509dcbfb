"""Arguments with an effect of their own: ignore_data_skip, log_on_each_node, label_names, eval_accumulation_steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer

from drivetrain import TrainingArguments, processes
from drivetrain.processes import Processes


class Watched(torch.utils.data.Dataset[Any]):
    """Knows which rows it was asked for."""

    def __init__(self) -> None:
        self.rows, self.asked = rows(24), list[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.rows[index]


def test_ignore_data_skip_begins_a_whole_pass(tmp_path: Path) -> None:
    values: dict[str, Any] = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole, skipped, exact = Watched(), Watched(), Watched()
    trainer(tmp_path, data=whole, eval_dataset=[], **values).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    trainer(tmp_path / "a", data=exact, **values).train(checkpoint)
    trainer(tmp_path / "b", data=skipped, ignore_data_skip=True, **values).train(checkpoint)
    assert exact.asked == whole.asked[16:]  # two batches of eight were seen
    assert sorted(skipped.asked[:24]) == list(range(24))


@pytest.fixture
def place() -> Iterator[Any]:
    """Lets this process be the one of some rank, as a launcher tells it."""

    def be(rank: int, local_rank: int) -> None:
        class Launcher:
            def start(self, args: Any) -> Processes:
                return Processes(
                    torch.device("cpu"), rank, local_rank, 4, 0, lambda: None, local_world_size=2
                )

        processes.set_launcher(lambda args: Launcher())

    yield be
    processes.set_launcher(None)


@pytest.mark.parametrize(
    ("rank", "local_rank", "on_each_node", "logs"),
    [(0, 0, True, True), (0, 0, False, True), (2, 0, True, True), (2, 0, False, False), (3, 1, True, False)],
)
def test_who_logs_on_several_nodes(
    place: Any, rank: int, local_rank: int, on_each_node: bool, logs: bool
) -> None:
    place(rank, local_rank)
    args = TrainingArguments(
        "out", log_on_each_node=on_each_node, log_level="info", log_level_replica="error", use_cpu=True
    )
    assert args.should_log == logs
    assert args.get_process_log_level() == (logging.INFO if logs else logging.ERROR)


class TwoTargets(torch.nn.Module):
    """Its loss is of whichever target it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: Any = None, target: Any = None) -> Any:
        logits = self.layer(x)
        wanted = labels if target is None else target
        return {"loss": torch.nn.functional.cross_entropy(logits, wanted), "logits": logits}


def test_label_names_say_what_is_kept_as_labels(tmp_path: Path) -> None:
    data = [{**row, "target": 2 - row["labels"]} for row in rows(12)]
    model = TwoTargets()
    for names, wanted in (
        (None, ["labels"]),
        (["target"], ["target"]),
        (["labels", "target"], ["labels", "target"]),
    ):
        found = trainer(tmp_path, model=model, label_names=names).predict(data).label_ids
        found = found if isinstance(found, tuple) else (found,)
        assert [part.tolist() for part in found] == [[row[name] for row in data] for name in wanted]


def test_eval_accumulation_steps_change_nothing_of_what_is_kept(tmp_path: Path) -> None:
    model, data = TwoTargets(), rows(45)
    plain = trainer(tmp_path, model=model).predict(data)
    for every in (1, 2, 100):
        moved = trainer(tmp_path, model=model, eval_accumulation_steps=every).predict(data)
        assert (moved.predictions == plain.predictions).all()
        assert (moved.label_ids == plain.label_ids).all()
        assert moved.metrics["test_loss"] == plain.metrics["test_loss"]
