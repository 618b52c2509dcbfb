"""Metrics that are fed batch by batch (`batch_eval_metrics`), so that no predictions are kept for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Feeding:
    """Feeds `compute_metrics` the batches of one pass, each when the next one is there: so the last is known.

    Args:
        compute_metrics: `(EvalPrediction, compute_result=bool) -> metrics`; one with a method `reset` is reset.

    Attributes:
        fed: batches that it has been given.
    """

    def __init__(self, compute_metrics: Callable[..., Any]) -> None:
        self._compute = compute_metrics
        self._waiting: Any = None
        self.fed = 0
        reset = getattr(compute_metrics, "reset", None)
        if callable(reset):
            reset()

    def add(self, batch: Any) -> None:
        """Takes a batch's predictions, labels and inputs, as tensors; without predictions or labels it is left out."""
        if batch.predictions is None or batch.label_ids is None:
            return
        if self._waiting is not None:
            self._compute(self._waiting, compute_result=False)
            self.fed += 1
        self._waiting = batch

    def result(self) -> dict[str, Any]:
        """Feeds the last batch; what comes back is the metrics of all. Empty where there was none."""
        last, self._waiting = self._waiting, None
        if last is None:
            return {}
        self.fed += 1
        return self._compute(last, compute_result=True) or {}
