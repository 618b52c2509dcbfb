"""Trains in the processes of torchrun, and writes down what a run by hand needs: `record.py OUT PLAN`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from drivetrain import Run, Trainer, TrainingArguments, hookimpl

ROWS, ROWS_A_PROCESS = 41, 4
"""On two processes five batches of 8 rows and one of 1: the second process has no row in the last."""


class Model(torch.nn.Module):
    """Odd shapes, so that signs fill no last byte; a part that is used now and then, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(5, 7, bias=False)  # before a mean it would have no gradient but noise
        self.norm = torch.nn.BatchNorm1d(7)
        self.seldom = torch.nn.Linear(7, 7)
        self.never = torch.nn.Linear(3, 3)
        self.last = torch.nn.Linear(7, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.norm(self.first(x)) if len(x) > 1 else self.first(x))
        if x[0, 0] > 0.5:  # on one process and not on the other
            hidden = hidden + self.seldom(hidden)
        return {"loss": torch.nn.functional.mse_loss(self.last(hidden), labels)}


def rows() -> list[dict[str, torch.Tensor]]:
    """A function of five numbers."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, generator=generator)
    return [{"x": row, "labels": row[:1] * row[1:2]} for row in x]


class Recorded(Trainer):
    """Keeps each micro-batch."""

    recorded: list[dict[str, torch.Tensor]]

    def training_step(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.recorded.append({name: value.clone() for name, value in inputs.items()})
        return super().training_step(model, inputs)


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Begun:
    """Keeps what the strategy holds when a run begins, and the gradients that the optimizer is about to see."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}
        self.gradients: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        self.kept = {name: value.clone() for name, value in run.strategy.kept.items()}

    @hookimpl
    def on_gradients_ready(self, run: Run) -> None:
        named = run.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def main(out: Path, plan: dict[str, dict[str, Any]]) -> None:
    said = Said()
    logging.getLogger("drivetrain.signsgd").addHandler(said)
    for name, settings in plan.items():
        said.lines.clear()
        resume, data = settings.pop("resume", None), rows()
        if settings.pop("spoilt", False):
            data[7]["labels"] = torch.tensor([float("nan")])
        given = {
            "strategy": "signsgd",
            "per_device_train_batch_size": ROWS_A_PROCESS,
            "use_cpu": True,
            **settings,
        }
        arguments = TrainingArguments(str(out / name), report_to="none", disable_tqdm=True, **given)
        begun = Begun()
        trainer = Recorded(Model(), arguments, train_dataset=data, plugins=[begun])
        trainer.recorded = []
        trainer.train(resume_from_checkpoint=str(out / resume) if resume else None)
        made = {
            "batches": trainer.recorded,
            "kept": begun.kept,
            "gradients": begun.gradients,
            "weights": trainer.model.state_dict(),
            "sent": trainer.run.figures["megabytes_sent"],
            "said": list(said.lines),
        }
        torch.save(made, out / f"{name}-{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
