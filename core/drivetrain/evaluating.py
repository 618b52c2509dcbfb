"""Evaluation and prediction: the part of the Trainer around `evaluation.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from drivetrain.base import TrainerBase
from drivetrain.batch_size import halving_evaluation
from drivetrain.evaluation import (
    EvalLoopOutput,
    PredictionOutput,
    evaluation_loop,
    prediction_step,
    speed_metrics,
)
from drivetrain.placement import is_empty
from drivetrain.session import Session, culprits_named


class Evaluations(TrainerBase):
    """The part of the Trainer that evaluates and predicts."""

    _is_evaluating = False
    _found: tuple[int, int] | None = None  # the evaluation batch that was asked for, and what fitted

    @property
    def _eval_batch_size(self) -> int:
        """Rows of a batch of an evaluation: as the arguments say, or what `auto_find_batch_size` has found."""
        asked = self.args.eval_batch_size
        return self._found[1] if self._found is not None and self._found[0] == asked else asked

    @_eval_batch_size.setter
    def _eval_batch_size(self, found: int) -> None:
        self._found = self.args.eval_batch_size, found

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates.

        Args:
            eval_dataset: in place of the trainer's own; a dict of data sets gives all their metrics together.
            ignore_keys: keys of the model's output that are left out.
            metric_key_prefix: "eval" makes `eval_loss`.

        Returns:
            The metrics: the loss, what `compute_metrics` gave, and speed.
        """
        chosen = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(chosen, dict):
            metrics: dict[str, float] = {}
            for name, dataset in chosen.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        start = time.time()
        self._stages.begin("eval")
        with self._evaluating():
            loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
            output = halving_evaluation(
                self,
                chosen,
                lambda: loop(
                    self.get_eval_dataloader(eval_dataset),
                    description="Evaluation",
                    prediction_loss_only=True if self.compute_metrics is None else None,
                    ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                ),
            )
            self._add_speed(output, metric_key_prefix, start)
            metrics = output.metrics
            self._stages.end("eval", metrics)
            self.log(metrics)
            for call in self.run.plan.events.on_evaluate:
                call(self.run, metrics)
        return metrics

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Predicts.

        Args:
            test_dataset: rows, with labels or without.
            ignore_keys: keys of the model's output that are left out.
            metric_key_prefix: of the metrics, where there are labels.

        Returns:
            `predictions` and `label_ids` (arrays, rows first), and `metrics`.
        """
        start = time.time()
        self._stages.begin("test")
        with self._evaluating():
            loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
            output = halving_evaluation(
                self,
                test_dataset,
                lambda: loop(
                    self.get_test_dataloader(test_dataset),
                    description="Prediction",
                    ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                ),
            )
            self._add_speed(output, metric_key_prefix, start)
            self._stages.end("test", output.metrics)
            for call in self.run.plan.events.on_predict:
                call(self.run, output.metrics)
        return PredictionOutput(output.predictions, output.label_ids, output.metrics)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within `train()` the strategy's own context, within itself nothing; else plugins and slots for this alone."""
        # A callback that evaluates at the very end of training does so with the model as it was trained.
        if self._session is not None and self._trains_still():
            with self.run.timing.aside("evaluation"), self._session.evaluating():
                yield
            return
        if self.is_in_train or self._is_evaluating:
            yield
            return
        run = self.run
        run.model = self.model
        session = Session(self, run)
        with culprits_named(run):
            try:
                self._is_evaluating = True
                session.resolve(training=False)
                session.open(training=False)
                if self.model_init is not None and is_empty(self.model):
                    self._build_model(None)
                session.autocast(self.model)
                session.cast_for_evaluation(self.model, self.label_names)
                session.wrap(session._transform("before_wrap", self.model))
                self.model_wrapped = run.model_wrapped
                yield
            finally:
                self._is_evaluating = False
                session.close()
                self.model_wrapped = self.model

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Runs the model over a dataloader: losses, predictions, labels and metrics.

        Args:
            dataloader: of the rows; every rank sees its share.
            description: "Evaluation" or "Prediction", for the progress bar.
            prediction_loss_only: keep the loss alone; by default the argument of the same name.
            ignore_keys: keys of the model's output that are left out.
            metric_key_prefix: of the metrics.
        """
        with self._evaluating():  # a subclass's own evaluate() or predict() calls this by itself
            return evaluation_loop(
                self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )

    prediction_loop = evaluation_loop

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """The loss, the logits and the labels of a batch, each None where there is none.

        Args:
            model: the wrapped model.
            inputs: the batch, on the host.
            prediction_loss_only: leave logits and labels out.
            ignore_keys: keys of the model's output that are left out.
        """
        return prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)

    def _fire_prediction_step(self) -> None:
        """Tells the listeners that a batch of an evaluation is done."""
        for call in self.run.plan.events.on_prediction_step:
            call(self.run)

    def _add_speed(self, output: EvalLoopOutput, prefix: str, start: float) -> None:
        rows = output.num_samples or 0
        steps = math.ceil(rows / (self._eval_batch_size * self.args.world_size))
        output.metrics.update(speed_metrics(prefix, start, num_samples=rows, num_steps=steps))
