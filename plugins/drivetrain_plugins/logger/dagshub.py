"""Rows of the log in a run of MLflow that DagsHub keeps, and the output folder in its repository."""

from __future__ import annotations

import importlib
import os
from typing import Any

from drivetrain_plugins.logger.facts import Facts, flag
from drivetrain_plugins.logger.mlflow import MlflowLogger


class DagshubLogger(MlflowLogger):
    """All that the logger `mlflow` does, at the address that `dagshub.init()` has put into `MLFLOW_TRACKING_URI`.

    `HF_DAGSHUB_LOG_ARTIFACTS` uploads the output folder when training ends, to `artifacts` in the branch `BRANCH`
    (default "main"), as 4.34.0 documents it.
    """

    name = "dagshub"
    _repo: Any = None

    def load(self) -> None:
        """Imports MLflow, and DagsHub where it is to upload."""
        super().load()
        self._uploads = flag("HF_DAGSHUB_LOG_ARTIFACTS")
        if self._uploads:
            self._upload = importlib.import_module("dagshub.upload")

    def open(self, facts: Facts) -> None:
        """Finds the repository by the address, and begins the run."""
        if self._uploads and facts.is_training:
            owner, name = os.environ["MLFLOW_TRACKING_URI"].rstrip("/").split("/")[-2:]
            branch = os.environ.get("BRANCH") or "main"
            self._repo = self._upload.Repo(owner=owner, name=name.removesuffix(".mlflow"), branch=branch)
        super().open(facts)

    def close(self) -> None:
        """Ends the run, and uploads the output folder."""
        super().close()
        if self._repo is not None:
            self._repo.directory("artifacts").add_dir(self._output_dir)
