"""What all loggers share: the first process alone speaks, and a failure never ends a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from drivetrain.plugin import hookimpl
from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


def grouped(logs: Mapping[str, Any]) -> dict[str, Any]:
    """The names that dashboards know: `eval_loss` becomes `eval/loss`, `loss` becomes `train/loss`."""
    made: dict[str, Any] = {}
    for name, value in logs.items():
        for stage in ("eval", "test"):
            if name.startswith(f"{stage}_"):
                made[f"{stage}/{name[len(stage) + 1 :]}"] = value
                break
        else:
            made[f"train/{name}"] = value
    return made


def model_config(run: Run) -> Any:
    """The model's `config`, if it is of the kind that turns itself into JSON; None otherwise."""
    config = getattr(run.model, "config", None)
    return config if hasattr(config, "to_json_string") and hasattr(config, "to_dict") else None


class Logger:
    """Base of the loggers here. A subclass overrides `open`, `write`, `close`.

    The tracker is opened at the first event that has something for it. What a tracker raises is said in one
    warning, then counted, and the count is said at the end.
    """

    name = "logger"

    def __init__(self) -> None:
        self.failures = 0
        self._opened = False

    def open(self, run: Run) -> None:
        """Starts the tracker, and writes arguments and model configuration."""
        raise NotImplementedError

    def write(self, run: Run, row: dict[str, Any]) -> None:
        """Writes a row of the log, its names grouped, at `run.state.global_step`."""
        raise NotImplementedError

    def close(self, run: Run) -> None:
        """Training has ended; a later evaluation may still come."""

    def _guarded(self, run: Run, work: Callable[..., None], *arguments: Any) -> None:
        if not run.is_main_process:
            return
        try:
            if not self._opened:
                self.open(run)
                self._opened = True
            work(run, *arguments)
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                logger.warning(
                    "Logger %r failed and the run goes on without its rows: %s: %s",
                    self.name,
                    type(error).__name__,
                    error,
                )

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Opens the tracker."""
        self.failures = 0
        self._guarded(run, lambda run: None)

    @hookimpl
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """Writes the row."""
        self._guarded(run, self.write, grouped(logs))

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Closes the tracker, and tells how many rows it has lost."""
        self._end(run)

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Closes the tracker, so that what led to the error is in it."""
        self._end(run)

    def _end(self, run: Run) -> None:
        if self._opened:
            self._guarded(run, self.close)
            self._opened = False
        if self.failures > 1:
            logger.warning("Logger %r failed %d times in this run.", self.name, self.failures)
