"""A small run that pushes to a hub."""

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
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.drop(self.layer(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def make(folder: Path, model: nn.Module | None = None, **arguments: Any) -> Trainer:
    """Four updates in two epochs, with a checkpoint after each; all random numbers are those of `seed`."""
    data = [{"x": torch.ones(4) * i / 16, "labels": i % 2} for i in range(16)]
    args = TrainingArguments(
        str(folder / "a-model"),
        **{
            "num_train_epochs": 2,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "push_to_hub": True,
            "hub_token": TOKEN,
            "hub_patience": 60.0,
            **arguments,
        },
    )
    torch.manual_seed(0)
    return Trainer(model or Net(), args, train_dataset=data, eval_dataset=data)


def result(trainer: Trainer) -> tuple[list[Any], list[Any]]:
    """The log, without times, and the weights."""
    rows = [
        {key: value for key, value in row.items() if "runtime" not in key and "per_second" not in key}
        for row in trainer.state.log_history
    ]
    return rows, [tensor.tolist() for tensor in trainer.model.state_dict().values()]
