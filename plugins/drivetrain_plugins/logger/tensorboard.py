"""Rows of the log as TensorBoard's event files."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from drivetrain.run import Run
from drivetrain_plugins.logger.base import Logger, model_config

logger = logging.getLogger("drivetrain")


class TensorBoardLogger(Logger):
    """Writes scalars named `train/loss`, `eval/loss`; arguments and model configuration as text."""

    name = "tensorboard"

    def __init__(self) -> None:
        super().__init__()
        self._writer: SummaryWriter | None = None
        self._strange: set[str] = set()

    def open(self, run: Run) -> None:
        """Begins an event file in `logging_dir`, or in the trial's folder of it within a search."""
        folder = str(run.args.logging_dir)
        if run.state.is_hyper_param_search and run.state.trial_name:
            folder = os.path.join(folder, run.state.trial_name)
        # The writer creates events of later steps twice where a run resumes; this hides those that were lost.
        purge = run.state.global_step + 1 if run.state.global_step else None
        self._writer = SummaryWriter(log_dir=folder, purge_step=purge)
        self._writer.add_text("args", run.args.to_json_string())
        config = model_config(run)
        if config is not None:
            self._writer.add_text("model_config", config.to_json_string())

    def write(self, run: Run, row: dict[str, Any]) -> None:
        """Adds the row's numbers; what is no number is named once."""
        assert self._writer is not None
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, run.state.global_step)
            elif name not in self._strange:
                self._strange.add(name)
                logger.warning(
                    "TensorBoard takes numbers alone, so %r (%s) is not in it.", name, type(value).__name__
                )
        self._writer.flush()

    def close(self, run: Run) -> None:
        """Ends the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
