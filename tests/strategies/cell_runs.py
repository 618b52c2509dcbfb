"""A cell's run, in a worker: it only trains, and tells what the engine, the compiler and the optimizer really were."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from strategies.cells import BREAKS, data_of, handed_in, model_of_cells
from strategies.configurations import CONFIGURATIONS
from strategies.measuring import elements, engine, innermost
from strategies.model import Block, collate
from strategies.scenario import Scenario

BROKEN = 5
"""The micro-batch at which a rank fails: with an accumulation of 3, the second of the second update."""


class CellTrainer(Trainer):
    """Keeps each micro-batch's loss, as far as it is this rank's share of it, and fails where it is told to."""

    report: dict[str, Any]
    breaks = False

    def training_step(self, model: Any, inputs: Any) -> torch.Tensor:
        self.report["before_first_step"] = False
        if self.breaks and len(self.report["losses"]) + 1 == BROKEN:
            raise ValueError(BREAKS)
        loss = super().training_step(model, inputs)
        self.report["losses"].append(float(loss) * self.run.accumulation * self.run.batch_weight)
        return loss


class Watcher(TrainerCallback):
    """Looks at the engine at work."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        run = self.trainer.run
        norm = run.update.grad_norm
        self.report["norms"].append(None if norm is None else float(norm))
        if "elements" not in self.report:
            self.report |= {
                "engine": engine(run),
                "strategy": run.plan.slot("strategy").name,
                "precision": run.plan.slot("precision").name,
                "optimizer": _optimizer(run.optimizer),
                "recomputed": sum(isinstance(m, Block) and "forward" in vars(m) for m in run.model.modules()),
                "elements": elements(run),
            }
        return control


def _optimizer(optimizer: Any) -> str:
    """The class of what steps, inside all that engines wrap it in."""
    inner = innermost(optimizer)
    return type(getattr(inner, "inner", inner)).__name__


def run_cell(scenario: Scenario, folder: Path, report: dict[str, Any]) -> None:
    """Trains, and writes what there is to compare."""
    begun = time.process_time()
    torch._dynamo.reset()
    counters.clear()
    cell = scenario.cell
    settings = copy.deepcopy({**CONFIGURATIONS[scenario.configuration].arguments, **scenario.settings})
    settings["per_device_train_batch_size"] = scenario.rows_a_process
    model, watcher = model_of_cells(), Watcher(report)
    trainer = CellTrainer(
        model=model,
        args=TrainingArguments(str(folder / "run"), **settings),
        data_collator=collate,
        train_dataset=data_of(cell),
        callbacks=[watcher],
        **({"optimizers": optimizers} if (optimizers := handed_in(cell, model)) is not None else {}),
    )
    watcher.trainer = trainer
    trainer.report = report
    trainer.breaks = scenario.breaks and os.environ.get("RANK") == "1"
    report["training_loss"] = trainer.train().training_loss
    report["rates"] = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    report["cpu"] = time.process_time() - begun
    report["graphs"] = int(counters["aot_autograd"]["ok"])
    report["left"] = sum(
        module._compiled_call_impl is not None or "forward" in vars(module)
        for module in trainer.model.modules()
    )
    weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    report["digest"] = [float(tensor.double().sum()) for tensor in weights.values()]
    if os.environ.get("RANK", "0") == "0":
        torch.save({"weights": weights}, folder / "tensors.pt")
