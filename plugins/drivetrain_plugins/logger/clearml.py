"""Rows of the log in a task of ClearML."""

from __future__ import annotations

import importlib
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row, flag

# One value of a run each, and no curve.
_SINGLE = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
    "epoch",
)


class ClearmlLogger(Logger):
    """Logs to the task that the script has begun, or to one of its own; a resume goes on in the checkpoint's.

    ClearML reads its own environment (`CLEARML_API_HOST`, `CLEARML_OFFLINE_MODE`, ...). Here are read
    `CLEARML_PROJECT`, `CLEARML_TASK` and `CLEARML_LOG_MODEL`, as 4.34.0 documents them. A metric is a plot with the
    series `train`, `eval` and `test`.
    """

    name = "clearml"
    _clearml: Any
    _task: Any
    _output_dir: str

    def load(self) -> None:
        """Imports ClearML."""
        self._clearml = importlib.import_module("clearml")

    def open(self, facts: Facts) -> None:
        """Begins a task, or goes on with one, and writes arguments and model configuration."""
        self._output_dir = facts.output_dir
        kind = self._clearml.Task
        self._task, self._is_ours = kind.current_task(), False
        if self._task is None:
            self._task, self._is_ours = (
                kind.init(
                    project_name=os.environ.get("CLEARML_PROJECT", "HuggingFace Transformers"),
                    task_name=facts.name or os.environ.get("CLEARML_TASK", "Trainer"),
                    # 4.34.0 has it leave torch alone; nothing else of the process is changed either.
                    auto_connect_frameworks=False,
                    auto_connect_arg_parser=False,
                    auto_connect_streams=False,
                    reuse_last_task_id=facts.joins.get("task_id", False),
                    # 0 goes on, and leaves the steps as they are; True would add those that are there.
                    continue_last_task=0 if "task_id" in facts.joins else False,
                    output_uri=True,
                ),
                True,
            )
        self.state = {"task_id": self._task.id}
        self._task.connect(dict(facts.arguments), name="Args")
        if facts.model_config is not None:
            self._task.connect(dict(facts.model_config), name="Model Configuration")

    def write(self, row: Row) -> None:
        """Reports the numbers of a row."""
        report = self._task.get_logger()
        for name, value in self.numbers(row.values).items():
            stage, _, rest = name.partition("_")
            if name in _SINGLE:
                report.report_single_value(name=name, value=value)
            elif stage in ("eval", "test") and rest:
                report.report_scalar(title=rest, series=stage, value=value, iteration=row.step)
            else:
                report.report_scalar(title=name, series="train", value=value, iteration=row.step)

    def keeps_checkpoints(self) -> bool:
        """Under `CLEARML_LOG_MODEL`."""
        return flag("CLEARML_LOG_MODEL")

    def save(self, checkpoint: str, step: int) -> None:
        """Uploads a checkpoint as the task's model."""
        self._task.update_output_model(checkpoint, iteration=step, auto_delete_file=False)

    def close(self) -> None:
        """Adds the model's card, if the output folder has one, and ends a task of its own."""
        card = os.path.join(self._output_dir, "README.md")
        try:
            if os.path.exists(card):
                self._task.upload_artifact("README.md", artifact_object=card)
        finally:
            if self._is_ours:
                self._task.close()
