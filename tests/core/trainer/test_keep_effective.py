"""keep_effective_batch_size: a smaller batch at once, and the rows of an update as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, history, rows, trainer

from drivetrain import ConfigurationError, Trainer
from drivetrain.batch_size import _shrink
from drivetrain.checkpoint import read_run


class Narrow(Toy):
    """Takes four rows at once in training."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.training and len(x) > 4:
            torch.empty(2**46)
        return super().forward(x, labels)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(rows(45))


def run(folder: Path, model: torch.nn.Module, **values: Any) -> Trainer:
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 16,
        "evaluation_strategy": "epoch",
    }
    torch.manual_seed(0)
    made = trainer(folder, model=model, **{**settings, **values})
    made.train()
    return made


def found(folder: Path, **values: Any) -> Trainer:
    torch.manual_seed(0)
    return run(folder, Narrow(), auto_find_batch_size=True, keep_effective_batch_size=True, **values)


def plain(folder: Path, **values: Any) -> Trainer:
    torch.manual_seed(0)
    return run(folder, Toy(), **values)


def close(one: Trainer, other: Trainer) -> None:
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(weight, other.model.state_dict()[name], rtol=2e-5, atol=2e-6)
    for row, wanted in zip(history(one), history(other), strict=True):
        assert row.keys() == wanted.keys()
        assert row == pytest.approx(wanted, rel=2e-5, abs=1.01e-4)  # a logged loss is rounded to four places


@pytest.mark.parametrize(
    "values",
    [
        {},  # 101 rows: the last batch has five
        {"gradient_accumulation_steps": 4},
        {"dataloader_drop_last": True},
        {"data": Stream(), "max_steps": 7},
        {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.01},
    ],
    ids=["short end", "accumulation", "drop last", "stream", "clipped"],
)
def test_updates_are_those_of_the_large_batch(tmp_path: Path, values: dict[str, Any]) -> None:
    one = found(tmp_path / "a", **values)
    assert (one._train_batch_size, one._parts) == (16, 4)
    close(one, plain(tmp_path / "b", **values))


def test_without_it_an_update_has_fewer_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = run(tmp_path / "a", Narrow(), auto_find_batch_size=True)
    assert (one._train_batch_size, one._parts, one.state.max_steps) == (4, 1, 52)


def test_a_resume_goes_on_in_as_many_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    first = found(tmp_path / "a", **values)
    checkpoint = tmp_path / "a" / "checkpoint-6"
    layout = read_run(str(checkpoint))["position"]["layout"]
    assert layout == {"batch_size": 16, "world": 1, "parts": 4, "batches": 1, "asked": 16}
    caplog.clear()
    again = found(tmp_path / "a", **values, resume_from_checkpoint=str(checkpoint))
    assert again._parts == 4
    assert "Out of memory" not in caplog.text
    close(again, first)


@pytest.mark.parametrize(("batch", "tried"), [(16, [8, 4, 2, 1]), (6, [3, 1]), (7, [1]), (10, [5, 2, 1])])
def test_parts_are_whole_numbers_of_rows(tmp_path: Path, batch: int, tried: list[int]) -> None:
    made = trainer(tmp_path, auto_find_batch_size=True, keep_effective_batch_size=True)
    made._train_batch_size = batch
    seen = []
    while not seen or seen[-1] > 1:
        _shrink(made, made._train_batch_size // made._parts)
        seen.append(batch // made._parts)
        assert made._train_batch_size == batch == seen[-1] * made._parts
    assert seen == tried


def test_a_loader_of_whole_batches_is_refused(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            data = rows(64)
            batches = [list(range(i, i + 16)) for i in range(0, 64, 16)]
            from drivetrain.data import default_data_collator

            return torch.utils.data.DataLoader(data, batch_sampler=batches, collate_fn=default_data_collator)

    with pytest.raises(ConfigurationError, match="this loader gives whole batches"):
        found(tmp_path, cls=Own)


def test_alone_it_is_said_to_do_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain(tmp_path, keep_effective_batch_size=True, max_steps=1, evaluation_strategy="no")
    assert "keep_effective_batch_size=True has no effect: auto_find_batch_size is False." in caplog.text
