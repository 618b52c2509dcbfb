"""The callback that is enabled by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain import ConfigurationError, Trainer, TrainingArguments, hookimpl


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.second(torch.tanh(self.first(x))), labels)}


class Watches:
    """Takes the norms from elsewhere: the gradients themselves, and what the strategy measured."""

    name = "watches"

    def __init__(self) -> None:
        self.by_name: dict[int, dict[str, float]] = {}
        self.total: dict[int, float] = {}

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        self.by_name[run.state.global_step + 1] = {
            name: float((parameter.grad**2).sum()) for name, parameter in run.model.named_parameters()
        }

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.total[run.state.global_step] = float(run.update.grad_norm)


def trainer(folder: Path, options: dict[str, Any], **arguments: Any) -> tuple[Trainer, Watches]:
    torch.manual_seed(3)
    data = [{"x": torch.randn(4), "labels": i % 2} for i in range(80)]
    args = TrainingArguments(
        str(folder),
        num_train_epochs=1,
        logging_steps=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        max_grad_norm=0.01,
        plugins={"gradient_norms": options},
        **arguments,
    )
    watches = Watches()
    return Trainer(Net(), args, train_dataset=data, plugins=[watches]), watches


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gradient_norms.jsonl").read_text().splitlines()]


def test_norms_before_clipping_in_all_by_group_and_by_name(tmp_path: Path) -> None:
    made, watches = trainer(tmp_path, {"every": 4, "top": 3}, save_strategy="no", weight_decay=0.01)
    made.train()
    rows = written(tmp_path)
    assert [row["step"] for row in rows] == [1, 4, 8]
    for row in rows:
        squares = watches.by_name[row["step"]]
        assert row["gradient_norm"] == pytest.approx(watches.total[row["step"]], rel=1e-5)
        assert row["gradient_norm"] > 0.01
        groups = [value for name, value in row.items() if name.startswith("gradient_norm/")]
        assert len(groups) == 2
        weights = math.sqrt(sum(value for name, value in squares.items() if "bias" not in name))
        assert any(group == pytest.approx(weights, rel=1e-5) for group in groups)
        assert math.hypot(*groups) == pytest.approx(row["gradient_norm"], rel=1e-5)
        largest = sorted(squares, key=lambda name: squares[name], reverse=True)[:3]
        assert list(row["largest"]) == largest
        for name, value in row["largest"].items():
            assert value == pytest.approx(math.sqrt(squares[name]), rel=1e-5)
    assert made.run.figures["gradient_norm"] == rows[-1]["gradient_norm"]


def test_a_resume_goes_on_in_the_file(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, {"every": 1}, save_steps=4, max_steps=10)
    made.train()
    whole = written(tmp_path)
    assert [row["step"] for row in whole] == list(range(1, 11))
    again, _ = trainer(tmp_path, {"every": 1}, save_steps=4, max_steps=10)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed = written(tmp_path)
    assert [row["step"] for row in resumed] == list(range(1, 11))
    for before, after in zip(whole, resumed, strict=True):
        assert after["gradient_norm"] == pytest.approx(before["gradient_norm"], rel=1e-5)
    fresh, _ = trainer(tmp_path, {"every": 5}, save_strategy="no", max_steps=10)
    fresh.train()
    assert [row["step"] for row in written(tmp_path)] == [1, 5, 10]


def test_enabled_in_the_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drivetrain.toml").write_text('[plugins]\nenable = ["gradient_norms"]\n')
    monkeypatch.chdir(tmp_path)
    data = [{"x": torch.ones(4), "labels": i % 2} for i in range(16)]
    args = TrainingArguments(
        "out", max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    Trainer(Net(), args, train_dataset=data).train()
    assert [row["step"] for row in written(tmp_path / "out")] == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every=0 must be at least 1"),
        ({"top": -1}, "top=-1"),
        ({"evry": 3}, "Did you mean 'every'?"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, options)[0].train()
    assert said in str(caught.value)
