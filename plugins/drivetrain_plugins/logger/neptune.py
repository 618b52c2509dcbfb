"""Rows of the log in a run of Neptune."""

from __future__ import annotations

import importlib
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.options import NeptuneOptions

# A value of the run, and no curve.
_FLAT = ("train/epoch",)


class NeptuneLogger(Logger):
    """Logs to a run of its own below `finetuning`; a resume goes on in the checkpoint's.

    Neptune reads its own environment: `NEPTUNE_PROJECT`, `NEPTUNE_API_TOKEN`, `NEPTUNE_MODE` (offline, debug, ...).
    Its other settings of 4.34.0 are options.
    """

    name = "neptune"
    options: NeptuneOptions
    _neptune: Any
    _run: Any
    _uploaded: str | None = None

    def load(self) -> None:
        """Imports Neptune."""
        self._neptune = importlib.import_module("neptune")
        self._utils = importlib.import_module("neptune.utils")

    def open(self, facts: Facts) -> None:
        """Begins a run, or goes on with one, and writes parameters."""
        self._output_dir = facts.output_dir
        settings: dict[str, Any] = {"name": facts.name} if facts.name is not None else {}
        if "id" in facts.joins:
            settings["with_id"] = facts.joins["id"]
        self._run = self._neptune.init_run(**settings)
        if os.environ.get("NEPTUNE_MODE") not in ("offline", "debug"):
            self.state = {"id": self._run["sys/id"].fetch()}
        self._space = self._run[self.options.base_namespace]
        text = self._utils.stringify_unsupported
        if facts.is_training and self.options.log_parameters:
            self._space["trainer_parameters"] = text(facts.arguments)
            if facts.model_config is not None:
                self._space["model_parameters"] = text(facts.model_config)
        if facts.trial_name is not None:
            self._space["trial"] = facts.trial_name
            self._space["trial_params"] = text(facts.trial_params or {})

    def write(self, row: Row) -> None:
        """Adds the numbers of a row to their curves."""
        for name, value in self.numbers(row.grouped).items():
            if name in _FLAT:
                self._space[name] = value
            else:
                self._space[name].append(value, step=row.step)

    def keeps_checkpoints(self) -> bool:
        """Under the option `log_checkpoints`."""
        return self.options.log_checkpoints is not None

    def save(self, checkpoint: str, step: int) -> None:
        """Uploads a checkpoint; under "last" it takes the place of the one before."""
        name = os.path.basename(checkpoint)
        if self.options.log_checkpoints == "last":
            if self._uploaded is not None:
                del self._space[f"checkpoints/last/{self._uploaded}"]
            self._uploaded, name = name, f"last/{name}"
        self._space[f"checkpoints/{name}"].upload_files(checkpoint)

    def close(self) -> None:
        """Adds the model's card, if the output folder has one, and ends the run when all is on its way."""
        card = os.path.join(self._output_dir, "README.md")
        try:
            if os.path.exists(card):
                self._space["model_card"].upload(card, wait=True)
        finally:
            self._run.stop()
