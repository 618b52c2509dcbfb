"""Rows of the log in a run of MLflow."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row, flag

logger = logging.getLogger("drivetrain")


class MlflowLogger(Logger):
    """Logs to the run that is active in the script, or to one of its own; a resume goes on in the checkpoint's.

    MLflow reads its own environment (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_ID`, ...). Here are read
    `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_RUN_ID`, `MLFLOW_NESTED_RUN`, `MLFLOW_TAGS`, `MLFLOW_FLATTEN_PARAMS` and
    `HF_MLFLOW_LOG_ARTIFACTS`, as 4.34.0 documents them. Metrics have the names of the log.
    """

    name = "mlflow"
    _mlflow: Any
    _run_id: str
    _active: Any
    _output_dir: str

    def load(self) -> None:
        """Imports MLflow, and looks for the script's run: what is active is known to the thread that began it alone."""
        self._mlflow = importlib.import_module("mlflow")
        active = self._mlflow.active_run()
        self._active = active.info.run_id if active is not None else None

    def open(self, facts: Facts) -> None:
        """Begins a run, or goes on with one, and writes parameters and tags."""
        mlflow, nested = self._mlflow, flag("MLFLOW_NESTED_RUN")
        self._client = mlflow.MlflowClient()
        wanted = facts.joins.get("run_id") or os.environ.get("MLFLOW_RUN_ID")
        self._is_ours = self._active is None or nested or "run_id" in facts.joins
        if self._is_ours:
            while mlflow.active_run() is not None:
                mlflow.end_run()  # of a training whose end did not come through
            begun = mlflow.start_run(run_id=wanted) if wanted is not None else self._begin_run(facts, nested)
            self._run_id = begun.info.run_id
        else:
            self._run_id = self._active
        self.state = {"run_id": self._run_id}
        self._output_dir = facts.output_dir
        self._write_parameters(facts)
        if self._is_ours and (tags := os.environ.get("MLFLOW_TAGS")):
            mlflow.set_tags(json.loads(tags))

    def _begin_run(self, facts: Facts, nested: bool) -> Any:
        given: dict[str, Any] = {"run_name": facts.name or facts.output_dir}
        if nested and self._active is not None:
            given["parent_run_id"] = self._active
        if name := os.environ.get(
            "MLFLOW_EXPERIMENT_NAME"
        ):  # not by `set_experiment`, which outlives the run
            there = self._client.get_experiment_by_name(name)
            given["experiment_id"] = (
                there.experiment_id if there is not None else self._client.create_experiment(name)
            )
        return self._mlflow.start_run(**given)

    def _write_parameters(self, facts: Facts) -> None:
        limits = importlib.import_module("mlflow.utils.validation")
        values = _flat(facts.configuration) if flag("MLFLOW_FLATTEN_PARAMS") else facts.configuration
        there = self._client.get_run(
            self._run_id
        ).data.params  # of a run that goes on; a parameter is set once
        params = {name: value for name, value in values.items() if name not in there}
        long = [name for name, value in params.items() if len(str(value)) > limits.MAX_PARAM_VAL_LENGTH]
        if long:
            logger.warning(
                "MLflow takes no parameters longer than %d characters, so it lacks %s; MLFLOW_FLATTEN_PARAMS=1 takes "
                "them apart.",
                limits.MAX_PARAM_VAL_LENGTH,
                ", ".join(long),
            )
        made = [self._mlflow.entities.Param(name, str(params[name])) for name in params if name not in long]
        size = limits.MAX_PARAMS_TAGS_PER_BATCH
        for start in range(0, len(made), size):
            self._client.log_batch(self._run_id, params=made[start : start + size])

    def write(self, row: Row) -> None:
        """Logs the numbers of a row."""
        self._mlflow.log_metrics(self.numbers(row.values), step=row.step, run_id=self._run_id)

    def keeps_checkpoints(self) -> bool:
        """Under `HF_MLFLOW_LOG_ARTIFACTS`."""
        return flag("HF_MLFLOW_LOG_ARTIFACTS")

    def save(self, checkpoint: str, step: int) -> None:
        """Copies a checkpoint to the run's artifacts."""
        self._client.log_artifacts(self._run_id, checkpoint, os.path.basename(checkpoint))

    def close(self) -> None:
        """Adds the model's card, if the output folder has one, and ends a run of its own."""
        card = os.path.join(self._output_dir, "README.md")
        try:
            if os.path.exists(card):
                self._client.log_artifact(self._run_id, card)
        finally:
            if self._is_ours:
                self._mlflow.end_run("FAILED" if self.error is not None else "FINISHED")


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dictionaries within others taken apart: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            made |= _flat(value, f"{above}{name}.")
        else:
            made[f"{above}{name}"] = value
    return made
