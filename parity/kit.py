"""What a parity case works with: the engine's names, a folder, and a place to put what is compared."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fixtures import Net, data

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_substep_end",
    "on_step_end",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_log",
    "on_prediction_step",
)
FLAGS = (
    "should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log",
)  # fmt: skip
STATE = (
    "global_step",
    "epoch",
    "max_steps",
    "num_train_epochs",
    "best_metric",
    "total_flos",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "is_local_process_zero",
    "is_world_process_zero",
    "is_hyper_param_search",
)
SPEED = re.compile(r"_(runtime|samples_per_second|steps_per_second)$")

Case = Callable[["Kit"], None]
REGISTRY: dict[str, tuple[Case, str]] = {}


def case(name: str, ours: str = "") -> Callable[[Case], Case]:
    """Register a case. ``ours`` says why it is run on drivetrain alone (a documented difference); else both."""

    def register(function: Case) -> Case:
        if name in REGISTRY:
            raise ValueError(f"Two parity cases are called {name!r}; rename one.")
        REGISTRY[name] = (function, ours)
        return function

    return register


def settings(name: str, **arguments: Any) -> None:
    """The commonest case: train the plain network with these arguments and compare everything."""

    def function(k: Kit) -> None:
        k.train(k.trainer(**arguments))

    case(name)(function)


def clean(value: Any) -> Any:
    """JSON's form of a recorded value; floats that JSON cannot write become strings."""
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, (np.generic, torch.Tensor)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{type(value).__name__}>"


def without_speed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the value of each runtime and throughput replaced by the type it has."""
    return {key: (type(item).__name__ if SPEED.search(key) else item) for key, item in row.items()}


class Kit:
    """Builds trainers of the engine under test and records what they did."""

    def __init__(self, engine: str, hf: SimpleNamespace, folder: Path) -> None:
        self.engine, self.hf, self.folder = engine, hf, folder
        self.ours = engine == "drivetrain"
        self.record: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.trainers: list[tuple[str, Any, list[Any], list[float]]] = []

    # -- building ------------------------------------------------------------------------------------------

    def args(self, **arguments: Any) -> Any:
        """TrainingArguments for a quick run: batches of 4, a row of log at every step, no reports."""
        usual = {
            "output_dir": str(self.folder / "out"),
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.01,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "log_level": "error",
        }
        return self.hf.TrainingArguments(**{**usual, **arguments})

    def trainer(
        self,
        model: Any = None,
        train: Any = None,
        eval: Any = None,
        cls: type | None = None,
        callbacks: Any = (),
        data_collator: Any = None,
        tokenizer: Any = None,
        model_init: Any = None,
        compute_metrics: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        watch: bool = True,
        args: Any = None,
        **arguments: Any,
    ) -> Any:
        """A Trainer over small data; what is not said has a default, the rest goes to TrainingArguments."""
        events: list[Any] = []
        losses: list[float] = []
        model = Net() if model is None and model_init is None else model
        arguments_object = self.args(**arguments) if args is None else args
        trainer = (cls or self.hf.Trainer)(
            model=model,
            args=arguments_object,
            train_dataset=data() if train is None else train,
            eval_dataset=data(10, seed=2) if eval is None else eval,
            data_collator=data_collator,
            tokenizer=tokenizer,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=[*callbacks, *([transcript(self.hf, events)] if watch else [])],
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if model is not None:
            model.register_forward_hook(lambda module, inputs, outputs: note_loss(losses, outputs))
        self.trainers.append((f"trainer{len(self.trainers)}", trainer, events, losses))
        return trainer

    # -- recording -----------------------------------------------------------------------------------------

    def note(self, name: str, value: Any) -> None:
        """Record a JSON value under ``name``; numbers are compared with the tolerance."""
        self.record[name] = clean(value)

    def array(self, name: str, value: Any) -> None:
        """Record an array, or a nest of arrays, under ``name``."""
        if value is None:
            self.note(name, None)
        elif isinstance(value, dict):
            for key, item in value.items():
                self.array(f"{name}.{key}", item)
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                self.array(f"{name}.{index}", item)
        else:
            if isinstance(value, torch.Tensor):
                value = value.detach().float().numpy() if value.is_floating_point() else value.numpy()
            self.arrays[name] = np.array(value)

    def train(self, trainer: Any, name: str = "train", **arguments: Any) -> Any:
        """``trainer.train()``, with its output recorded."""
        output = trainer.train(**arguments)
        self.note(f"{name}.global_step", output.global_step)
        self.note(f"{name}.training_loss", output.training_loss)
        metrics = {key: value for key, value in output.metrics.items() if key != "total_flos"}
        self.note(
            f"{name}.metrics", without_speed(metrics)
        )  # the reference drops it when it prints, ours always
        return output

    def evaluate(self, trainer: Any, name: str = "evaluate", **arguments: Any) -> dict[str, Any]:
        metrics = trainer.evaluate(**arguments)
        self.note(name, without_speed(metrics))
        return metrics

    def predict(self, trainer: Any, rows: Any, name: str = "predict", **arguments: Any) -> Any:
        output = trainer.predict(rows, **arguments)
        self.array(f"{name}.predictions", output.predictions)
        self.array(f"{name}.label_ids", output.label_ids)
        self.note(f"{name}.metrics", without_speed(output.metrics))
        return output

    def weights(self, name: str, model: Any) -> None:
        for key, value in model.state_dict().items():
            self.array(f"{name}.weights.{key}", value)

    def checkpoints(self, folder: Any = None) -> list[str]:
        """The names of the checkpoints in the output folder, by step."""
        names = [path.name for path in Path(folder or self.folder / "out").glob("checkpoint-*")]
        return sorted(names, key=lambda name: int(name.rsplit("-", 1)[1]))

    def finish(self) -> None:
        """Record what every trainer of the case left behind, and where the global generators stand."""
        self.note("random", [torch.rand(()).item(), float(np.random.random()), _python_random()])
        for name, trainer, events, losses in self.trainers:
            state = trainer.state
            self.note(f"{name}.log_history", [without_speed(row) for row in state.log_history])
            self.note(f"{name}.state", {field: getattr(state, field) for field in STATE})
            best = state.best_model_checkpoint
            self.note(f"{name}.best_model_checkpoint", None if best is None else os.path.basename(best))
            self.note(f"{name}.events", events)
            self.array(f"{name}.losses", np.array(losses, dtype=np.float64))
            self.note(f"{name}.folders", self.checkpoints(trainer.args.output_dir))
            self.note(f"{name}.control", {flag: getattr(trainer.control, flag) for flag in FLAGS})
            self.weights(name, trainer.model)


def _python_random() -> float:
    import random

    return random.random()


def note_loss(losses: list[float], outputs: Any) -> None:
    """A forward hook: keep the exact loss of every forward, the logged one being rounded."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if isinstance(loss, torch.Tensor) and loss.dim() == 0:
        losses.append(float(loss.detach()))


def transcript(hf: SimpleNamespace, events: list[Any]) -> Any:
    """A callback that writes down every event: step, epoch, flags, learning rates, and what came with it."""

    def write(event: str) -> Callable[..., None]:
        def method(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
            flags = "".join(flag.split("_", 1)[1][0] if getattr(control, flag) else "-" for flag in FLAGS)
            epoch = None if state.epoch is None else round(state.epoch, 9)
            entry: list[Any] = [event, state.global_step, epoch, flags]
            optimizer = given.get("optimizer")
            if event == "on_step_end" and optimizer is not None:
                entry.append([float(group["lr"]) for group in optimizer.param_groups])
            for extra in ("logs", "metrics"):
                if extra in given:
                    entry.append(sorted(given[extra]))
            if event in ("on_init_end", "on_train_begin", "on_evaluate"):
                entry.append(
                    sorted(key for key, value in given.items() if value is not None and key != "run")
                )
            events.append(entry)

        return method

    return type("Transcript", (hf.TrainerCallback,), {event: write(event) for event in EVENTS})()
