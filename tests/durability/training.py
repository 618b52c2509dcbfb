"""The training run that is killed: dropout, accumulation, an epoch that a save falls into, evaluation, a best model.

`python training.py '{"notes": ..., "result": ..., ...}'` runs it in a process of its own, in the working folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from support.toy import Toy, accuracy, history, rows

from drivetrain import CheckpointError, Trainer, TrainerCallback, TrainingArguments
from drivetrain.plugin import hookimpl

OUT = "out"  # relative, so that what names it is the same in every run

SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "logging_steps": 3,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "learning_rate": 0.05,
    "logging_dir": "logs",  # by default its name holds the time
    "report_to": "none",
    "disable_tqdm": True,
    "log_level": "error",
    "use_cpu": True,
}


class Notes(TrainerCallback):
    """Writes what a run has come to into a file, a line each, which a SIGKILL cannot take back."""

    def __init__(self, path: str) -> None:
        rank = os.environ.get("RANK", "0")
        with open(f"{path}.{rank}.pid", "w") as file:
            file.write(str(os.getpid()))
        path = path if rank == "0" else f"{path}.{rank}"
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, word: str, step: int) -> None:
        os.write(self.file, f"{word} {step}\n".encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("begin", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("step", state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("evaluate", state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("evaluated", state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("end", state.global_step)


class Saved:
    """A listener of checkpoints, which is told their folder: under `save_async` the run has gone further."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    @hookimpl
    def on_save(self, run: Any, checkpoint: str) -> None:
        self.notes.note("saved", int(checkpoint.rpartition("-")[2]))


class Noted(Trainer):
    """A trainer that also notes when the best model is loaded."""

    notes: Notes

    def _load_best_model(self) -> None:
        self.notes.note("best", self.state.global_step)
        super()._load_best_model()


def build(notes: Notes, settings: Mapping[str, Any]) -> Trainer:
    torch.manual_seed(0)
    data = rows(37, seed=3)
    made = Noted(
        model=Toy(dropout=0.2),
        args=TrainingArguments(**{"output_dir": OUT, **SETTINGS, **settings}),
        train_dataset=data,
        eval_dataset=rows(48, seed=4),
        compute_metrics=accuracy,
        callbacks=[notes],
        plugins=[Saved(notes)],
    )
    made.notes = notes
    return made


def run(notes: str, result: str, settings: Mapping[str, Any], resume: str | bool = True) -> None:
    """Goes on from the last checkpoint, or begins where there is none, and writes what it ended with."""
    logging.getLogger("drivetrain").setLevel(logging.ERROR)
    noted = Notes(notes)
    trained = build(noted, settings)
    try:
        trained.train(resume_from_checkpoint=resume)
    except CheckpointError as error:
        if "found no valid checkpoint" not in str(error):
            raise
        trained = build(noted, settings)
        trained.train()
    if trained.is_world_process_zero():
        with open(result + ".part", "w") as file:
            json.dump(outcome(trained), file)
        os.replace(result + ".part", result)


def outcome(trained: Trainer) -> dict[str, Any]:
    """What a run ended with, in a form that two runs can be compared by: tensors as digests of their bytes."""
    if trained.args.world_size > 1:  # weights and optimizer may be spread; the checkpoints have them whole
        return {"log": history(trained), "best": trained.state.best_metric, "step": trained.state.global_step}
    assert trained.optimizer is not None
    assert trained.lr_scheduler is not None
    return {
        "weights": digested(trained.model.state_dict()),
        "optimizer": digested(trained.optimizer.state_dict()),
        "scheduler": digested(trained.lr_scheduler.state_dict()),
        "log": history(trained),
        "best": [trained.state.best_metric, trained.state.best_model_checkpoint],
        "step": trained.state.global_step,
        "drawn": torch.rand(1).item(),  # the generator stands where it would
    }


def digested(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(raw, digest_size=16).hexdigest()}"
    if isinstance(value, Mapping):
        return {str(key): digested(found) for key, found in value.items()}
    if isinstance(value, (list, tuple)):
        return [digested(found) for found in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
