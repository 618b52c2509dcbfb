"""Rows of the log as metrics of an Azure ML run."""

from __future__ import annotations

import importlib
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row


class AzureLogger(Logger):
    """Logs to the run of the job that this process belongs to; outside of a job Azure's own library prints the metrics.

    It is azureml-core's, as in 4.34.0. A newer workspace takes the logger `mlflow`, with azureml-mlflow installed.
    Metrics have the names of the log.
    """

    name = "azure_ml"
    _module: Any
    _run: Any

    def load(self) -> None:
        """Imports azureml-core."""
        self._module = importlib.import_module("azureml.core.run")

    def open(self, facts: Facts) -> None:
        """Finds the job's run; the job, and not we, begins and ends it."""
        self._run = self._module.Run.get_context()

    def write(self, row: Row) -> None:
        """Logs the numbers of a row, which Azure numbers by their order."""
        for name, value in self.numbers(row.values).items():
            self._run.log(name, value, description=name)

    def close(self) -> None:
        """Sends what is on its way."""
        self._run.flush()
