"""Rows of the log in an experiment of SwanLab."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row

logger = logging.getLogger("drivetrain")


class SwanlabLogger(Logger):
    """Logs to the experiment that the script has begun, or to one of its own; a resume goes on in the checkpoint's.

    SwanLab reads its own environment (`SWANLAB_API_KEY`, `SWANLAB_MODE`, `SWANLAB_LOGDIR`, ...). Without
    `SWANLAB_PROJ_NAME` the project is "huggingface".
    """

    name = "swanlab"
    _swanlab: Any
    _run: Any

    def load(self) -> None:
        """Imports SwanLab."""
        self._swanlab = importlib.import_module("swanlab")

    def open(self, facts: Facts) -> None:
        """Begins an experiment, or goes on with one, and writes the configuration."""
        self._is_ours = not self._swanlab.has_run()
        if self._is_ours:
            settings: dict[str, Any] = {
                "project": os.environ.get("SWANLAB_PROJ_NAME", "huggingface"),
                "config": facts.configuration,
            }
            if facts.name is not None:
                settings["name"] = facts.name
            if facts.trial_name is not None:
                settings["group"] = facts.run_name
            if (
                "SWANLAB_MODE" not in os.environ and not self._swanlab.Settings().api_key
            ):  # read, never asked for
                settings["mode"] = "offline"
                logger.warning(
                    "Nobody is logged in to SwanLab, so the run is written offline. Run 'swanlab login' before it, or "
                    "'swanlab sync' on its folder afterwards."
                )
            if "id" in facts.joins:
                settings.update(id=facts.joins["id"], resume="allow")
            self._run = self._swanlab.init(**settings)
        else:
            self._run = self._swanlab.get_run()
            self._run.config.update(facts.configuration)
        self.state = {"id": self._run.id}

    def write(self, row: Row) -> None:
        """Logs the row at its step."""
        self._swanlab.log(self.numbers(row.grouped), step=row.step)

    def close(self) -> None:
        """Ends an experiment of its own."""
        if self._is_ours:
            self._swanlab.finish(state="success" if self.error is None else "crashed")
