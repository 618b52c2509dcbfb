"""Stops a run whose metric no longer improves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from drivetrain.callbacks.base import TrainerCallback
from drivetrain.errors import ConfigurationError

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments
    from drivetrain.callbacks.control import TrainerControl
    from drivetrain.callbacks.state import TrainerState

logger = logging.getLogger("drivetrain")


class EarlyStoppingCallback(TrainerCallback):
    """Stops training when `metric_for_best_model` has not improved for a number of evaluations.

    Args:
        early_stopping_patience: evaluations without improvement after which training stops.
        early_stopping_threshold: by how much, in units of the metric, it must improve to count.

    It needs `load_best_model_at_end`, `metric_for_best_model` and an evaluation strategy.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0
    ) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold or 0.0
        self.early_stopping_patience_counter = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the arguments that it depends on.

        Raises:
            ConfigurationError: one of them is missing.
        """
        problems = []
        if not args.load_best_model_at_end:
            problems.append("EarlyStoppingCallback needs load_best_model_at_end=True.")
        if args.metric_for_best_model is None:
            problems.append(
                "EarlyStoppingCallback needs metric_for_best_model, the metric that must improve."
            )
        if args.evaluation_strategy == "no":
            problems.append("EarlyStoppingCallback needs evaluation_strategy='steps' or 'epoch'.")
        if problems:
            raise ConfigurationError(problems)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Counts evaluations that did not improve on the best so far."""
        name = args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        value = (metrics or {}).get(name)
        if value is None:
            logger.warning(
                "EarlyStoppingCallback needs the metric %r, which this evaluation does not have.", name
            )
            return
        best = state.best_metric
        better = best is None or (value > best if args.greater_is_better else value < best)
        if better and (best is None or abs(value - best) > self.early_stopping_threshold):
            self.early_stopping_patience_counter = 0
        else:
            self.early_stopping_patience_counter += 1
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def save_state(self) -> dict[str, Any]:
        """The counter, which a resume must find again."""
        return {"early_stopping_patience_counter": self.early_stopping_patience_counter}

    def load_state(self, state: dict[str, Any]) -> None:
        """Sets the counter."""
        self.early_stopping_patience_counter = int(state["early_stopping_patience_counter"])
