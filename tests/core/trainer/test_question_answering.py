"""A Trainer for question answering, of the kind of transformers' own examples: metrics in a second go."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.toy import rows

from drivetrain import Trainer, TrainerCallback, TrainingArguments
from drivetrain.evaluation import EvalPrediction, PredictionOutput, speed_metrics


class Spans(torch.nn.Module):
    """Start and end of an answer, from eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 10)

    def forward(self, x: Any, start_positions: Any = None, end_positions: Any = None) -> Any:
        start, end = self.layer(x).split(5, dim=-1)
        if start_positions is None:
            return {"start_logits": start, "end_logits": end}
        loss = torch.nn.functional.cross_entropy(start, start_positions) + torch.nn.functional.cross_entropy(
            end, end_positions
        )
        return {"loss": loss / 2, "start_logits": start, "end_logits": end}


class SpansForQuestionAnswering(Spans):
    """Named so that its labels are known to be two."""


class QuestionAnsweringTrainer(Trainer):
    """Evaluates in two goes: logits first, without metrics; then answers, made from logits and the examples."""

    def __init__(
        self, *args: Any, eval_examples: Any = None, post_process_function: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Any = None,
        eval_examples: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        eval_examples = self.eval_examples if eval_examples is None else eval_examples
        output = self._logits(
            self.get_eval_dataloader(eval_dataset), "Evaluation", ignore_keys, metric_key_prefix
        )
        metrics = output.metrics
        if (
            self.post_process_function is not None
            and self.compute_metrics is not None
            and self.args.should_save
        ):
            found = self.compute_metrics(
                self.post_process_function(eval_examples, eval_dataset, output.predictions)
            )
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()} | metrics
        if self.args.should_log:
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(  # type: ignore[override]
        self,
        predict_dataset: Any,
        predict_examples: Any,
        ignore_keys: Any = None,
        metric_key_prefix: str = "test",
    ) -> Any:
        output = self._logits(
            self.get_test_dataloader(predict_dataset), "Prediction", ignore_keys, metric_key_prefix
        )
        predictions = self.post_process_function(
            predict_examples, predict_dataset, output.predictions, "predict"
        )
        found = self.compute_metrics(predictions)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()} | output.metrics
        return PredictionOutput(predictions.predictions, predictions.label_ids, metrics)

    def _logits(self, dataloader: Any, description: str, ignore_keys: Any, prefix: str) -> Any:
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        started = time.time()
        try:
            output = loop(
                dataloader,
                description=description,
                prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        batch = self.args.eval_batch_size * self.args.world_size
        output.metrics.update(
            speed_metrics(
                prefix,
                started,
                num_samples=output.num_samples,
                num_steps=math.ceil(output.num_samples / batch),
            )
        )
        return output


def answers(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"x": row["x"], "start_positions": row["labels"], "end_positions": (row["labels"] + 1) % 5}
        for row in rows(count)
    ]


def post_process(examples: Any, features: Any, predictions: Any, stage: str = "eval") -> EvalPrediction:
    start, end = predictions
    assert start.shape == end.shape == (len(features), 5)
    spans = np.stack([start.argmax(-1), end.argmax(-1)], axis=-1)
    return EvalPrediction(spans, np.array([[e["start_positions"], e["end_positions"]] for e in examples]))


def exact(prediction: EvalPrediction) -> dict[str, float]:
    return {"exact_match": float((prediction.predictions == prediction.label_ids).all(-1).mean())}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:.*use_legacy_prediction_loop")
def test_question_answering(tmp_path: Path, legacy: bool) -> None:
    heard: list[Any] = []

    class Hear(TrainerCallback):
        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
        ) -> None:
            heard.append(metrics["eval_exact_match"])

    args = TrainingArguments(
        str(tmp_path), max_steps=20, evaluation_strategy="steps", eval_steps=10, save_steps=10, learning_rate=0.1,
        load_best_model_at_end=True, metric_for_best_model="exact_match", use_cpu=True, report_to="none",
        disable_tqdm=True, **({"use_legacy_prediction_loop": True} if legacy else {}),
    )  # fmt: skip
    made = QuestionAnsweringTrainer(
        model=SpansForQuestionAnswering(),
        args=args,
        train_dataset=answers(),
        eval_dataset=answers(),
        eval_examples=answers(),
        post_process_function=post_process,
        compute_metrics=exact,
        callbacks=[Hear],
    )
    assert made.label_names == ["start_positions", "end_positions"]
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert len(heard) == 4
    assert after["eval_exact_match"] > before["eval_exact_match"]
    assert made.state.best_metric == max(heard[1:3])
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_samples_per_second"] > 0
    output = made.predict(answers(7), answers(7))
    assert output.predictions.shape == (7, 2)
    assert set(output.metrics) >= {"test_exact_match", "test_loss", "test_runtime"}
