"""Trains in the processes of torchrun, and writes down what a run by hand needs: `record.py OUT PLAN`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from drivetrain import Trainer, TrainingArguments

ROWS, ROWS_A_PROCESS = 41, 4
"""On two processes five batches of 8 rows and one of 1: the second process has no row in the last."""


class Model(torch.nn.Module):
    """A function of five numbers, a tied weight among its parameters, and a buffer that each process moves by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(5, 5)
        self.second = torch.nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(5, 1)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen += x.detach().sum(0)
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        return {"loss": torch.nn.functional.mse_loss(self.last(hidden), labels)}


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, generator=generator)
    return [{"x": row, "labels": row[:1] * row[1:2]} for row in x]


class Recorded(Trainer):
    """Keeps each micro-batch."""

    recorded: list[dict[str, torch.Tensor]]

    def training_step(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.recorded.append({name: value.clone() for name, value in inputs.items()})
        return super().training_step(model, inputs)


def main(out: Path, plan: dict[str, dict[str, Any]]) -> None:
    for name, settings in plan.items():
        resume = settings.pop("resume", None)
        given = {
            "strategy": "localsgd",
            "per_device_train_batch_size": ROWS_A_PROCESS,
            "use_cpu": True,
            **settings,
        }
        arguments = TrainingArguments(str(out / name), report_to="none", disable_tqdm=True, **given)
        trainer = Recorded(Model(), arguments, train_dataset=rows(), eval_dataset=rows())
        trainer.recorded = []
        trainer.train(resume_from_checkpoint=str(out / resume) if resume else None)
        made = {
            "batches": trainer.recorded,
            "weights": trainer.model.state_dict(),
            "evaluations": [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row],
        }
        torch.save(made, out / f"{name}-{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
