"""Rows of the log as TensorBoard's event files."""

from __future__ import annotations

import json
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row


class TensorBoardLogger(Logger):
    """Writes scalars named `train/loss`, `eval/loss`; arguments and model configuration as text."""

    name = "tensorboard"
    _writer: Any

    def load(self) -> None:
        """Imports torch's writer."""
        from torch.utils.tensorboard import SummaryWriter

        self._maker = SummaryWriter

    def open(self, facts: Facts) -> None:
        """Begins an event file in `logging_dir`, or in the trial's folder of it within a search."""
        # The writer creates events of later steps twice where a run resumes; this hides those that were lost.
        purge = facts.step + 1 if facts.step and facts.is_training else None
        folder = os.path.join(facts.logging_dir, facts.trial_name or "")
        self._writer = self._maker(log_dir=folder, purge_step=purge)
        self._writer.add_text("args", json.dumps(facts.arguments, indent=2))
        if facts.model_config is not None:
            self._writer.add_text("model_config", json.dumps(facts.model_config, indent=2))

    def write(self, row: Row) -> None:
        """Adds the row's numbers."""
        for name, value in self.numbers(row.grouped).items():
            self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()
