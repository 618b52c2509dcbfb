"""Rows of the log in an experiment of Comet."""

from __future__ import annotations

import importlib
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row, flag


class CometLogger(Logger):
    """Logs to the experiment that the script has begun, or to one of its own; a resume goes on in the checkpoint's.

    Comet reads its own environment (`COMET_API_KEY`, `COMET_WORKSPACE`, ...). Here are read `COMET_MODE` (ONLINE,
    OFFLINE, DISABLED), `COMET_PROJECT_NAME`, `COMET_OFFLINE_DIRECTORY` and `COMET_LOG_ASSETS`, as 4.34.0 documents
    them. Metrics have the names of the log.
    """

    name = "comet_ml"
    _comet: Any
    _experiment: Any
    _output_dir: str
    _step = 0

    def load(self) -> None:
        """Imports Comet."""
        self._comet = importlib.import_module("comet_ml")

    def open(self, facts: Facts) -> None:
        """Begins an experiment, or goes on with one, and writes parameters."""
        self._output_dir = facts.output_dir
        mode = os.environ.get("COMET_MODE", "ONLINE").upper()
        self._experiment, self._is_ours = None, False
        if mode == "DISABLED":
            return
        self._experiment = self._comet.get_running_experiment()
        if self._experiment is None or self._experiment.ended:
            self._experiment, self._is_ours = self._begin_experiment(facts, mode), True
        self.state = {"experiment_key": self._experiment.get_key()}
        self._experiment.log_parameters(facts.arguments, prefix="args")
        if facts.model_config is not None:
            self._experiment.log_parameters(facts.model_config, prefix="config")

    def _begin_experiment(self, facts: Facts, mode: str) -> Any:
        comet, key = self._comet, facts.joins.get("experiment_key")
        given: dict[str, Any] = {"project_name": os.environ.get("COMET_PROJECT_NAME", "huggingface")}
        if mode == "OFFLINE":
            given["offline_directory"] = os.environ.get("COMET_OFFLINE_DIRECTORY", "./")
        # Its hooks into torch would run within the training step.
        given |= {"auto_metric_logging": False, "auto_param_logging": False, "parse_args": False}
        if key is not None:
            kind = comet.ExistingOfflineExperiment if mode == "OFFLINE" else comet.ExistingExperiment
            return kind(previous_experiment=key, **given)
        experiment = (comet.OfflineExperiment if mode == "OFFLINE" else comet.Experiment)(**given)
        experiment.log_other("Created from", "drivetrain")
        if facts.name is not None:
            experiment.set_name(facts.name)
        return experiment

    def write(self, row: Row) -> None:
        """Logs the numbers of a row."""
        self._step = row.step
        if self._experiment is not None:
            self._experiment.log_metrics(self.numbers(row.values), step=row.step, epoch=row.epoch)

    def close(self) -> None:
        """Adds the model's card, or under `COMET_LOG_ASSETS` the whole output folder, and ends what it has begun."""
        if self._experiment is None:
            return
        card = os.path.join(self._output_dir, "README.md")
        try:
            if flag("COMET_LOG_ASSETS"):
                self._experiment.log_asset_folder(
                    self._output_dir, recursive=True, log_file_name=True, step=self._step
                )
            elif os.path.exists(card):
                self._experiment.log_asset(card, "README.md")
        finally:
            if self._is_ours:
                self._experiment.end()
