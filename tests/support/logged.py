"""A short run that is logged, for the tests of loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from drivetrain import Trainer, TrainingArguments

TOKEN = "hf_a-token-that-must-not-be-written"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(
    folder: Path,
    report_to: Any = "none",
    plugins: Any = (),
    callbacks: Any = (),
    plugins_options: Any = None,
    **arguments: Any,
) -> Trainer:
    """Two epochs of four updates, a row every second and an evaluation each epoch, always from the same weights."""
    torch.manual_seed(7)
    data = [{"x": torch.ones(4) * i, "labels": i % 2} for i in range(32)]
    args = TrainingArguments(
        str(folder / "out"),
        **{
            "num_train_epochs": 2,
            "logging_steps": 2,
            "evaluation_strategy": "epoch",
            "save_strategy": "no",
            "report_to": report_to,
            "use_cpu": True,
            "disable_tqdm": True,
            "plugins": plugins_options,
            **arguments,
        },
    )
    return Trainer(
        Net(), args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks), plugins=list(plugins)
    )


def without_clocks(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a log, without what depends on the time."""
    return [
        {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second"))}
        for row in history
    ]


def curve(history: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric in the log."""
    return [(row["step"], row[name]) for row in history if name in row]
