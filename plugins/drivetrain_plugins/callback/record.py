"""The record of a run: a file in its folder from which `drivetrain report` makes its pages."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import drivetrain
from drivetrain.checkpoint.files import make_folder
from drivetrain.plugin import hookimpl
from drivetrain.record import NAME, VERSION
from drivetrain.run import Run
from drivetrain.saving import run_folder
from drivetrain.secret import is_secret_name, struck, without_secrets
from drivetrain_plugins.callback.memory import host_memory

logger = logging.getLogger("drivetrain")

_OFTEN = 1.0  # seconds between two rows that hold times and memory


class Hearing(logging.Filter):
    """Keeps the warnings that drivetrain says; all are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[float, str]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Notes it, with the secrets struck out."""
        if record.levelno >= logging.WARNING:
            self.heard.append((record.created, struck(record.getMessage())))
        return True


class Record:
    """Appends to the run's record on the main process: one write for each row, so that a kill costs none.

    A record that cannot be written never ends a run: it is said once, and the run goes on without.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._told = 0.0  # when times and memory were written last
        self._hearing = Hearing()

    @hookimpl
    def on_stage_begin(self, run: Run, stage: str) -> None:
        """Listens to what is warned of in the set-up too."""
        if stage == "train" and run.is_main_process:
            self._close()
            self._path, self._hearing = None, Hearing()
            logger.addFilter(self._hearing)

    @hookimpl(tryfirst=True)
    def on_train_begin(self, run: Run) -> None:
        """Writes what the run is made of."""
        if not run.is_main_process:
            return
        self._path, self._told = Path(run_folder(run), NAME), 0.0
        self._open()
        self._write(run, "begin", **_facts(run))

    @hookimpl
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """Writes the row, and from time to time what it has cost so far."""
        if self._path is None:
            return
        row: dict[str, Any] = {"logs": logs}
        if run.is_training and "learning_rate" in logs:
            row["figures"] = {name: _short(value) for name, value in run.figures.items()}
        if run.is_training and (now := time.monotonic()) - self._told >= _OFTEN:
            self._told = now
            row |= _costs(run)
        self._write(run, "log", **row)

    @hookimpl
    def on_predict(self, run: Run, metrics: dict[str, float]) -> None:
        """Writes the metrics of a prediction after training."""
        if self._path is not None:
            self._write(run, "predict", logs=metrics)

    @hookimpl
    def on_save(self, run: Run, checkpoint: str) -> None:
        """Writes which checkpoint is whole, and which is the best."""
        state = run.state
        best = state.best_model_checkpoint
        self._write(
            run,
            "save",
            checkpoint=os.path.basename(checkpoint),
            best=os.path.basename(best) if best else None,
            best_metric=state.best_metric,
        )

    @hookimpl(trylast=True)
    def on_train_end(self, run: Run) -> None:
        """Writes where the time went, in all ranks."""
        if self._path is not None:
            best = run.state.best_model_checkpoint
            self._write(
                run,
                "end",
                stopped=run.stop_reason,
                ranks=[_rounded(parts) for parts in run.timing.ranks],
                best=os.path.basename(best) if best else None,
                best_metric=run.state.best_metric,
                **_costs(run),
            )
            self._close()

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        """Writes what ended the run."""
        if self._path is not None:
            self._write(run, "error", error=f"{type(error).__name__}: {error}", **_costs(run))
        self._close()

    def _open(self) -> None:
        assert self._path is not None
        try:
            make_folder(str(self._path.parent))  # as a checkpoint would, which finds it there
            with self._path.open("a+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")  # a machine that went down has left half a row
        except OSError as error:
            self._give_up(error)

    def _write(self, run: Run, kind: str, **row: Any) -> None:
        """Appends a row, and before it what was warned of meanwhile."""
        if self._path is None:
            return
        heard, self._hearing.heard = self._hearing.heard, []
        worded = heard or any(isinstance(value, str) for value in row.get("logs", {}).values())
        rows = [{"kind": "warning", "time": at, "message": text} for at, text in heard]
        rows.append({"kind": kind, "time": time.time(), "step": run.state.global_step, **row})
        text = json.dumps(rows, default=_plain)
        if kind != "log" or worded:  # numbers hold no secrets, and to look for some takes ten times as long
            rows = without_secrets(json.loads(text))
            lines = "".join(f"{json.dumps(found)}\n" for found in rows)
        else:
            lines = f"{text[1:-1]}\n"
        try:
            with self._path.open("ab", buffering=0) as file:  # not held open: a file system may be taken away
                file.write(lines.encode())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning(
            "The run's record %s cannot be written, and the run goes on without: %s", self._path, error
        )
        self._close()
        self._path = None

    def _close(self) -> None:
        logger.removeFilter(self._hearing)


def _facts(run: Run) -> dict[str, Any]:
    """What the run is made of, and what it was told."""
    args, processes = run.args, run.processes
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in run.model.parameters()]
    device = str(run.device.type)
    if device == "cuda":
        device = torch.cuda.get_device_name(run.device)
    return {
        "version": VERSION,
        "max_steps": run.state.max_steps,
        "epochs": run.state.num_train_epochs,
        "name": args.run_name,
        "trial": run.state.trial_params if run.state.is_hyper_param_search else None,
        "model": {
            "class": type(run.model).__name__,
            "parameters": sum(size for size, _ in sizes),
            "trained": sum(size for size, trained in sizes if trained),
        },
        "device": device,
        "processes": processes.world_size,
        "rows_per_update": args.train_batch_size * run.accumulation * processes.world_size,
        "metric": args.metric_for_best_model,
        "greater_is_better": args.greater_is_better,
        "arguments": {
            name: "<token>" if value and is_secret_name(name) else value
            for name, value in args.to_dict().items()
        },
        "given": sorted(args.given()),
        "plugins": [list(found) for found in run.plan.describe()],
        "notes": list(run.plan.inert),
        "versions": {
            "drivetrain": drivetrain.__version__,
            "torch": str(torch.__version__),
            "Python": platform.python_version(),
        },
    }


def _costs(run: Run) -> dict[str, Any]:
    """Seconds by part and by plugin since the run began, and the memory in use."""
    host = host_memory()
    memory = {} if host is None else {"host": host}
    if run.device.type not in ("cpu", "meta"):
        device = torch.get_device_module(run.device)
        if hasattr(device, "max_memory_allocated"):
            memory |= {"device": device.memory_allocated(), "device_peak": device.max_memory_allocated()}
    return {
        "seconds": _rounded(run.timing.parts()),
        "plugins": _rounded(run.timing.plugins),
        "memory": memory,
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    """For what JSON does not hold: numbers of arrays and tensors as numbers, everything strange as text."""
    try:
        return value.item() if hasattr(value, "item") else str(getattr(value, "value", value))
    except (TypeError, ValueError, RuntimeError):
        return str(value)
