"""A small run that the command line's tests start: a project folder with a config, a model and data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drivetrain.cli.app import app
from drivetrain.cli.console import STATE

MODULE = """
import torch
from torch import nn


class Line(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def model(width=2):
    return Line(width)


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator)
    return [{"x": row, "labels": int(row[0] > row[1])} for row in x]


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def data(count=64):
    return {
        "train": rows(count, 0), "eval": rows(32, 1), "test": rows(16, 2), "compute_metrics": accuracy,
    }


def after(trainer, word="hello"):
    print(f"AFTER {word} {trainer.state.global_step}")


def wrong_data():
    return {"train": rows(8, 0), "evall": rows(8, 0)}


number = 3
"""

CONFIG = """# a run
[model]
factory = "line_project:model"
width = 2

[data]
factory = "line_project:data"
count = 64

[training]
output_dir = "out"
num_train_epochs = 2
per_device_train_batch_size = 8
learning_rate = 0.1
evaluation_strategy = "epoch"
logging_strategy = "epoch"
save_strategy = "epoch"
report_to = "none"
use_cpu = true
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `run.toml` and its module, which is the current folder too."""
    (tmp_path / "line_project.py").write_text(MODULE)
    (tmp_path / "run.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # undone after the test, as what the command itself puts there
    import sys

    monkeypatch.delitem(sys.modules, "line_project", raising=False)
    return tmp_path


@pytest.fixture
def edit(project: Path) -> Callable[[str, str], None]:
    """Replaces text in the config."""

    def replace(old: str, new: str) -> None:
        path = project / "run.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return replace


@pytest.fixture
def drivetrain() -> Callable[..., Any]:
    """Runs the command line in this process; what it gives has `exit_code`, `stdout` and `stderr`."""

    def run(*words: str) -> Any:
        STATE.traceback = False
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
        return result

    return run


def read_json(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text())
    return found
