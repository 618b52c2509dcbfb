"""Runs many scenarios one after another in the processes of one launch: `torchrun worker.py PLAN OUT`.

After each the ranks wait for each other's report, in files, so that no collective stands between them. Where a
rank failed in the midst of its run, or some did and others did not, all end, and the driver begins anew with what
is left: nobody knows what that leaves behind in an engine.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from strategies.cell_runs import run_cell
from strategies.configurations import CONFIGURATIONS
from strategies.measuring import elements, engine
from strategies.model import EVALUATED_ROWS, TRAINED_ROWS, build, collate, rows
from strategies.scenario import BASE, LAST, LEFT_OVER, Scenario, read

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))

ERROR_PATIENCE = 20.0
"""Seconds that a rank which failed waits for the others to fail as well."""


class Losses(Trainer):
    """Keeps each micro-batch's loss, as far as it is this rank's share of it."""

    def training_step(self, model: Any, inputs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs)
        self.micro_losses.append(float(loss) * self.run.accumulation * self.run.batch_weight)
        return loss


class Watcher(TrainerCallback):
    """Asks for checkpoints, and looks at the engine at work."""

    def __init__(self, scenario: Scenario, report: dict[str, Any]) -> None:
        self.scenario, self.report = scenario, report
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        run = self.trainer.run
        self.report["before_first_step"] = False
        norm = run.update.grad_norm
        self.report["norms"].append(None if norm is None else float(norm))
        if "elements" not in self.report:
            self.report["engine"] = engine(run)
            self.report["strategy"] = run.plan.slot("strategy").name
            self.report["elements"] = elements(run)
        last = state.global_step == state.max_steps and LAST in self.scenario.saves
        if last or (state.global_step in self.scenario.saves and state.global_step != LEFT_OVER):
            control.should_save = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == LEFT_OVER and LEFT_OVER in self.scenario.saves:
            control.should_save = True
        return control


def digest(value: Any) -> str:
    """Of tensors or arrays, the same where every bit is."""
    made = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, (tuple, list)):
            for part in item:
                add(part)
        elif isinstance(item, dict):
            for key in sorted(item):
                made.update(key.encode())
                add(item[key])
        else:
            array = item.detach().float().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
            made.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())

    add(value)
    return made.hexdigest()[:16]


def run(scenario: Scenario, folder: Path, report: dict[str, Any]) -> None:
    """Trains, predicts, and writes what there is to compare."""
    configuration = CONFIGURATIONS[scenario.configuration]
    settings = {**BASE, **configuration.arguments, **scenario.settings}
    settings.setdefault("per_device_train_batch_size", scenario.rows_a_process)
    settings = json.loads(json.dumps(settings))  # nothing that one run changes is seen by the next
    given: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        given.append((prediction.predictions, prediction.label_ids))
        logits, classes, numbers = prediction.predictions
        real = prediction.label_ids >= 0
        # No accuracy: a single row of bf16 that falls to the other side would move it by more than 2e-2.
        likelihood = torch.as_tensor(logits[real]).softmax(-1).numpy()
        return {
            "likelihood": likelihood[np.arange(len(likelihood)), prediction.label_ids[real]].mean(),
            "spread": float(np.abs(classes).mean()),
            "order": float((numbers * np.arange(1, len(numbers) + 1)).sum()),
        }

    watcher = Watcher(scenario, report)
    trainer = Losses(
        model=build(),
        args=TrainingArguments(str(folder / "run"), **settings),
        data_collator=collate,
        train_dataset=rows(TRAINED_ROWS, 1),
        eval_dataset=rows(EVALUATED_ROWS, 2),
        compute_metrics=metrics,
        callbacks=[watcher],
    )
    watcher.trainer = trainer
    trainer.micro_losses = report["losses"]
    outcome = trainer.train(resume_from_checkpoint=scenario.resume)
    report["training_loss"] = outcome.training_loss
    report["history"] = [
        {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
        for row in trainer.state.log_history
    ]
    weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    report["parameters"] = sum(p.numel() for p in build().parameters())
    report["weights"] = digest(weights)
    with torch.no_grad():  # the bare model, on this rank alone
        batch = collate(rows(3, 4))
        report["bare"] = float(trainer.model(**batch)["loss"])
    given.clear()
    predicted = trainer.predict(rows(EVALUATED_ROWS, 3))
    report["predictions"] = digest(predicted.predictions)
    report["metrics_saw_the_same"] = digest(given[-1]) == digest((predicted.predictions, predicted.label_ids))
    report["metrics"] = {
        k: v for k, v in predicted.metrics.items() if "runtime" not in k and "per_second" not in k
    }
    if RANK == 0:
        predictions = [torch.as_tensor(array) for array in (*predicted.predictions, predicted.label_ids)]
        torch.save({"weights": weights, "predictions": predictions}, folder / "tensors.pt")


def tell(report: dict[str, Any], folder: Path) -> None:
    """Writes the report, whole or not at all."""
    temporary = folder / f".rank-{RANK}"
    temporary.write_text(json.dumps(report))
    temporary.rename(folder / f"rank-{RANK}.json")


def all_told(scenario: Scenario, folder: Path, patience: float) -> list[dict[str, Any]] | None:
    """Every rank's report, or None after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        paths = [folder / f"rank-{rank}.json" for rank in range(WORLD)]
        if all(path.exists() for path in paths):
            return [json.loads(path.read_text()) for path in paths]
        time.sleep(0.005)
    return None


def goes_on(reports: list[dict[str, Any]]) -> bool:
    """Whether the next run may begin in these processes: no rank failed, or all did before the first step."""
    failed = [report["before_first_step"] for report in reports if report["error"]]
    return not failed or (len(failed) == len(reports) and all(failed))


def main(plan: str, out: str) -> int:
    for scenario in read(Path(plan)):
        folder = Path(out) / scenario.name
        folder.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {
            "rank": RANK,
            "error": "",
            "trace": "",
            "engine": "",
            "losses": [],
            "norms": [],
            "before_first_step": True,
            "seconds": 0.0,
        }
        begun = time.monotonic()
        if scenario.breaks:  # torchrun's may come before this rank has told how it ended
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            (run_cell if scenario.cell else run)(scenario, folder, report)
        except Exception as error:
            report["error"] = f"{type(error).__name__}: {re.sub(chr(10), ' ', str(error))}"
            report["trace"] = traceback.format_exc()
            report["failed_at"] = time.monotonic()
            if scenario.breaks:
                tell(report, folder)
                raise  # as in a script of a user's, to the end of the process
        report["seconds"] = time.monotonic() - begun
        tell(report, folder)
        reports = all_told(scenario, folder, ERROR_PATIENCE if report["error"] else 300.0)
        if reports is None or not goes_on(reports):
            return 3
        gc.collect()
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    if code:
        sys.stdout.flush()
        os._exit(code)  # a group in which somebody failed cannot be ended together
