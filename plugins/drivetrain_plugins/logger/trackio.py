"""Rows of the log in a project of Trackio."""

from __future__ import annotations

import importlib
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row


class TrackioLogger(Logger):
    """Logs to a run of its own, in a database on this machine; a resume goes on in the checkpoint's.

    Trackio reads its own environment (`TRACKIO_DIR`, ...). Here are read `TRACKIO_PROJECT` (default "huggingface") and
    `TRACKIO_SPACE_ID`, a Space of the Hugging Face Hub that is to show the run.
    """

    name = "trackio"
    _trackio: Any
    _run: Any

    def load(self) -> None:
        """Imports Trackio."""
        self._trackio = importlib.import_module("trackio")

    def open(self, facts: Facts) -> None:
        """Begins a run, or goes on with one, and writes the configuration."""
        name = facts.joins.get("name") or facts.name
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "huggingface"),
            name=name,
            group=facts.run_name if facts.trial_name is not None else None,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=facts.configuration,
            resume="allow" if facts.joins else "never",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.state = {"name": self._run.name}

    def write(self, row: Row) -> None:
        """Logs the row at its step."""
        self._run.log(row.grouped, step=row.step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
