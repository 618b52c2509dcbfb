"""The log as a deck of a Flyte task, and checkpoints that Flyte keeps."""

from __future__ import annotations

import html
import importlib
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.options import FlyteOptions


class FlyteLogger(Logger):
    """Within a task: Flyte keeps its checkpoints, and the log is shown as the deck "Log History" when training ends.

    The task's context is there in the main thread alone, so training waits while a checkpoint is copied. A task goes
    on by `trainer.train(resume_from_checkpoint=current_context().checkpoint.restore())`.
    """

    name = "flyte"
    in_main_thread = True
    options: FlyteOptions
    _flytekit: Any

    def load(self) -> None:
        """Imports flytekit."""
        self._flytekit = importlib.import_module("flytekit")

    def open(self, facts: Facts) -> None:
        """Begins to collect the rows."""
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Row) -> None:
        """Keeps the row."""
        self._rows.append({**row.values, "step": row.step})

    def keeps_checkpoints(self) -> bool:
        """Under the option `sync_checkpoints`."""
        return self.options.sync_checkpoints

    def save(self, checkpoint: str, step: int) -> None:
        """Copies a checkpoint to where Flyte keeps them."""
        self._flytekit.current_context().checkpoint.save(os.fspath(checkpoint))

    def close(self) -> None:
        """Shows the log as a deck."""
        if self.options.save_log_history:
            self._flytekit.Deck("Log History", _table(self._rows))


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = ["".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in columns) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
