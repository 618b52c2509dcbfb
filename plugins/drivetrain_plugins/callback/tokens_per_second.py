"""`include_tokens_per_second`: tokens a second and device, in the metrics of training."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


class TokensPerSecond:
    """Counts the tokens that this rank trains on, by the shape of `input_ids`, or of the model's main input.

    Attributes:
        tokens: counted since training began.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._name = "input_ids"
        self._began = 0.0
        self._logged = 0, 0  # tokens and updates when a row was last logged

    @hookimpl
    def on_stage_begin(self, run: Run, stage: str) -> None:
        """Begins to count."""
        if stage == "train":
            self.tokens, self._began = 0, time.time()

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Asks the model for the name of its main input."""
        self._name = str(getattr(run.model, "main_input_name", "input_ids"))
        self._logged = 0, run.state.global_step

    @hookimpl
    def on_micro_batch(self, run: Run, inputs: Any) -> None:
        """Counts a micro-batch; its shape is on the host."""
        try:
            found = inputs["input_ids"] if "input_ids" in inputs else inputs[self._name]
        except (KeyError, TypeError, IndexError):
            return
        if isinstance(found, torch.Tensor) and not found.is_floating_point():
            self.tokens += found.numel()

    @hookimpl(tryfirst=True)
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """`tokens_per_second` of all ranks since the last row, for whoever shows the figures."""
        steps, rate = run.state.global_step - self._logged[1], run.figures.get("steps_per_second")
        if "loss" not in logs or steps <= 0 or not rate:
            return
        counted = self.tokens - self._logged[0]
        if counted:
            run.figures["tokens_per_second"] = counted * run.processes.world_size * rate / steps
        self._logged = self.tokens, run.state.global_step

    @hookimpl
    def on_stage_end(self, run: Run, stage: str, metrics: dict[str, float]) -> None:
        """Adds `train_tokens_per_second`."""
        if stage != "train":
            return
        if self.tokens == 0 and run.state.global_step:
            logger.warning(
                "include_tokens_per_second=True counted no token: the batches have no input_ids, and no %r.",
                self._name,
            )
        # The time is that of the other figures of speed.
        seconds = metrics.get("train_runtime") or time.time() - self._began
        metrics["train_tokens_per_second"] = round(self.tokens / max(seconds, 1e-9), 3)
