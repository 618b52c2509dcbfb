"""Runs scenarios one after another in the processes of one launch: `torchrun -m drivetrain.testing.worker PLAN`.

After each run the ranks wait for each other's reports, in files, so that no collective stands between them. Where one
has failed after its first update, all end, and the driver begins anew with what is left: nobody knows what that leaves
behind in an engine. A process that takes longer than a run may writes down where it is, and ends.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drivetrain.arguments import TrainingArguments
from drivetrain.discover import load_info
from drivetrain.testing.bare import check_bare
from drivetrain.testing.listener import Halving, Listener
from drivetrain.testing.model import EVALUATED_ROWS, build, collate, rows
from drivetrain.testing.scaling import SPIKE, Scaled, spiked
from drivetrain.testing.scenario import DRIVER, Report, Scenario, read
from drivetrain.trainer import Trainer

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))

ERROR_PATIENCE = 20.0
"""Seconds that a rank which failed waits for the others to fail as well."""


class Stage:
    """Says in a file what this rank is at, and ends the process where that takes too long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dump = (folder / f"rank-{RANK}.stack").open("w")

    def begin(self, what: str, limit: float) -> None:
        """The limit counts from now on."""
        (self.folder / f"rank-{RANK}.stage").write_text(what)
        faulthandler.dump_traceback_later(limit, exit=True, file=self._dump)

    def end(self) -> None:
        """Nothing is under way."""
        faulthandler.cancel_dump_traceback_later()
        self._dump.close()


class Watched(Trainer):
    """Keeps each micro-batch's loss, as far as it is this rank's share of it."""

    listener: Listener
    stage: Stage
    losses_seen: list[float]

    def training_step(self, model: Any, inputs: Any) -> torch.Tensor:
        """As the Trainer's."""
        scenario = self.listener.scenario
        if self.run.state.global_step == 1 and scenario.act in ("raise", "kill"):
            self.stage.begin("training on, though the last rank has failed", scenario.patience)
            self.listener.fail_if_due()
        loss = super().training_step(model, inputs)
        self.losses_seen.append(float(loss) * self.run.accumulation * self.run.batch_weight)
        return loss


class Spiked(Watched):
    """Lets the first update overflow on the last rank."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        """As the Trainer's, but for gradients."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.model_wrapped.training:
            first = self.run.state.global_step == 0 and RANK == WORLD - 1
            loss = spiked(loss, outputs["logits"], SPIKE if first else 0.0)
        return (loss, outputs) if return_outputs else loss


def digest(value: Any) -> str:
    """Of tensors and arrays; the same where every bit is."""
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
            array = (
                item.detach().cpu().float().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
            )
            made.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())

    add(value)
    return made.hexdigest()[:16]


def untimed(numbers: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock has measured."""
    return {k: v for k, v in numbers.items() if "runtime" not in k and "per_second" not in k}


def misspell(strategy: str, arguments: dict[str, Any], report: Report) -> None:
    """Gives the strategy an option that it does not have, by a name like that of one that it has."""
    options = load_info("strategy", strategy).options_class()
    report.options = [] if options is None else [entry.name for entry in fields(options)]
    report.misspelt = f"{report.options[0]}s" if report.options else "anything"
    while report.misspelt in report.options:
        report.misspelt += "s"
    arguments.setdefault("plugins", {}).setdefault(strategy, {})[report.misspelt] = 1


def run(scenario: Scenario, report: Report, stage: Stage) -> None:
    """Trains, predicts, and writes what there is to compare."""
    folder = Path(scenario.folder)
    given: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        given.append((prediction.predictions, prediction.label_ids))
        logits, classes, numbers = prediction.predictions
        real = prediction.label_ids >= 0
        # No accuracy: a single row of bf16 that falls to the other side would move it by more than 2e-2.
        likelihood = torch.as_tensor(logits[real]).softmax(-1).numpy()
        return {
            "likelihood": float(likelihood[np.arange(len(likelihood)), prediction.label_ids[real]].mean()),
            "spread": float(np.abs(classes).mean()),
            "order": float((numbers * np.arange(1, len(numbers) + 1)).sum()),
        }

    arguments = json.loads(json.dumps(scenario.arguments))  # nothing that one run changes is seen by the next
    if scenario.act == "misspell":
        misspell(scenario.strategy, arguments, report)
    listener, halving = Listener(scenario, report, RANK), Halving()
    model = build()
    trainer = (Spiked if scenario.scaled else Watched)(
        model=model,
        args=TrainingArguments(str(scenario.checkpoints), **arguments),
        data_collator=collate,
        train_dataset=rows(scenario.rows, 1),  # type: ignore[arg-type]  # a list serves as a data set
        eval_dataset=rows(EVALUATED_ROWS, 2),  # type: ignore[arg-type]
        compute_metrics=metrics,
        plugins=[
            listener,
            *([halving] if scenario.gradients else []),
            *([Scaled()] if scenario.scaled else []),
        ],
    )
    trainer.listener, trainer.stage, trainer.losses_seen = listener, stage, report.losses
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    if scenario.act == "evaluate":
        stage.begin("evaluating without a training", scenario.limit)
        report.log = [untimed(trainer.evaluate())]
    else:
        stage.begin("training", scenario.limit)
        report.training_loss = trainer.train(resume_from_checkpoint=scenario.resume).training_loss
        report.log = [untimed(row) for row in trainer.state.log_history]
        if scenario.twice:
            stage.begin("training a second time", scenario.limit)
            trainer.losses_seen = report.again
            trainer.train()
    closed = trainer.run.model_wrapped
    stage.begin("predicting", scenario.limit)
    given.clear()
    predicted = trainer.predict(rows(EVALUATED_ROWS, 3))
    report.predictions = digest([predicted.predictions, predicted.label_ids])
    report.metrics_saw_the_same = digest(given[-1]) == digest((predicted.predictions, predicted.label_ids))
    report.metrics = untimed(predicted.metrics or {})

    stage.begin("calling the model that came back, on the first rank alone", min(scenario.limit, 30.0))
    weights = {name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
    report.weights = digest(weights)
    check_bare(trainer, model, closed, report, backward=RANK == 0)
    if RANK == 0:
        parts = (*predicted.predictions, predicted.label_ids)
        names = ("logits", "classes", "numbers", "labels")
        tensors["predictions"] = {
            name: torch.as_tensor(part) for name, part in zip(names, parts, strict=True)
        }
        tensors["weights"], tensors["gradients"] = weights, halving.gradients
        torch.save(tensors, folder / "tensors.pt")


def tell(report: Report, folder: Path) -> None:
    """Writes the report, whole or not at all."""
    temporary = folder / f".rank-{RANK}"
    temporary.write_text(json.dumps(asdict(report)))
    temporary.rename(folder / f"rank-{RANK}.json")


def all_told(folder: Path, patience: float) -> list[dict[str, Any]] | None:
    """Every rank's report, or None after `patience` seconds."""
    end = time.monotonic() + patience
    paths = [folder / f"rank-{rank}.json" for rank in range(WORLD)]
    while time.monotonic() < end:
        if all(path.exists() for path in paths):
            return [json.loads(path.read_text()) for path in paths]
        time.sleep(0.005)
    return None


def goes_on(reports: list[dict[str, Any]]) -> bool:
    """Whether the next run may begin in these processes: no rank failed, or all did before the first update."""
    failed = [report["began"] for report in reports if report["error"]]
    return not failed or (len(failed) == len(reports) and not any(failed))


def wait_for(checkpoint: str) -> None:
    """Until another launch has written it, or has come to the end of the run that should have.

    Raises:
        FileNotFoundError: it was not written.
        ProcessLookupError: who has started this process, and the other launch, is gone.
    """
    path = Path(checkpoint)
    while not path.exists():
        if (path.parents[1] / "ended").exists() and not path.exists():
            raise FileNotFoundError(
                f"{path.name}, from which this run goes on, was not written by the run {path.parents[1].name!r}."
            )
        os.kill(int(os.environ[DRIVER]), 0)
        time.sleep(0.02)


def one(scenario: Scenario) -> bool:
    """One run. Returns whether the next may begin.

    Raises:
        Exception: what a rank raised that had been told to, or that lost such a one.
    """
    folder = Path(scenario.folder)
    folder.mkdir(parents=True, exist_ok=True)
    report, stage = Report(RANK), Stage(folder)
    failing = scenario.act in ("raise", "kill")
    if failing:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # torchrun would end the others before they have said why
    begun = time.monotonic()
    try:
        if scenario.resume is not None:
            wait_for(scenario.resume)
        run(scenario, report, stage)
    except Exception as error:
        report.error = f"{type(error).__name__}: {re.sub(chr(10), ' ', str(error))}"
        report.trace = traceback.format_exc()
        if failing:
            tell(report, folder)
            raise
    report.seconds = time.monotonic() - begun
    tell(report, folder)
    reports = all_told(folder, ERROR_PATIENCE if report.error else scenario.limit + 60.0)
    stage.end()
    gc.collect()
    return reports is not None and goes_on(reports)


def main(plan: str) -> int:
    """Runs a plan; the lock of this rank is held as long as the process lives."""
    place = Path(plan)
    lock = place.with_name(f"{place.stem}-rank-{RANK}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(str(os.getpid()))
    lock.flush()
    for scenario in read(place):
        if not one(scenario):
            sys.stdout.flush()
            os._exit(3)  # a group in which somebody failed cannot be ended together
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
