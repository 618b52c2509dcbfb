"""Metrics that are fed batch by batch: the same numbers, and nothing kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, rows, trainer

from drivetrain import ConfigurationError


class Accuracy:
    """Counts, until it is asked."""

    def __init__(self) -> None:
        self.right = self.all = 0
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, prediction: Any, compute_result: bool = False) -> dict[str, float]:
        logits, labels = prediction
        assert isinstance(logits, torch.Tensor)
        self.right += int((logits.argmax(1) == labels).sum())
        self.all += len(labels)
        self.calls.append((len(labels), compute_result))
        if not compute_result:
            return {}
        result = {"accuracy": self.right / self.all}
        self.right = self.all = 0
        return result


def whole(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(rows(53))


@pytest.mark.parametrize(
    ("data", "count"), [(rows(53), 53), (rows(48), 48), (Stream(), 53)], ids=["short end", "whole", "stream"]
)
def test_the_metrics_are_those_of_all_rows(tmp_path: Path, data: Any, count: int) -> None:
    accuracy = Accuracy()
    fed = trainer(tmp_path / "a", eval_dataset=data, compute_metrics=accuracy, batch_eval_metrics=True)
    plain = trainer(tmp_path / "b", eval_dataset=data, compute_metrics=whole)
    metrics, wanted = fed.evaluate(), plain.evaluate()
    assert metrics["eval_accuracy"] == wanted["eval_accuracy"]
    assert metrics["eval_loss"] == wanted["eval_loss"]
    assert [last for _, last in accuracy.calls] == [False] * (len(accuracy.calls) - 1) + [True]
    assert sum(rows for rows, _ in accuracy.calls) == count
    assert fed.evaluate()["eval_accuracy"] == wanted["eval_accuracy"]


def test_an_evaluation_keeps_nothing_and_a_prediction_gives_its_rows(tmp_path: Path) -> None:
    made = trainer(tmp_path, compute_metrics=Accuracy(), batch_eval_metrics=True)
    output = made.evaluation_loop(made.get_eval_dataloader(), "Evaluation")
    assert (output.predictions, output.label_ids) == (None, None)
    assert "eval_accuracy" in output.metrics
    predicted = made.predict(rows(20))
    assert predicted.predictions.shape == (20, 3)
    assert "test_accuracy" in predicted.metrics


def test_inputs_come_with_their_batch(tmp_path: Path) -> None:
    seen: list[Any] = []

    def compute(prediction: Any, compute_result: bool) -> dict[str, float]:
        seen.append(prediction.inputs.shape)
        return {}

    model = Toy()
    model.main_input_name = "x"  # type: ignore[assignment]
    values = {"batch_eval_metrics": True, "include_inputs_for_metrics": True}
    trainer(tmp_path, model=model, data=rows(12), compute_metrics=compute, **values).evaluate()
    assert seen == [(8, 8), (4, 8)]


def test_rows_without_labels_have_no_metrics(tmp_path: Path) -> None:
    def never(prediction: Any, compute_result: bool) -> dict[str, float]:
        raise AssertionError("there are no labels")

    made = trainer(tmp_path, compute_metrics=never, batch_eval_metrics=True)
    output = made.predict([{"x": row["x"]} for row in rows(9)])
    assert output.predictions.shape == (9, 3)


def test_a_function_that_cannot_be_fed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="let it take compute_result"):
        trainer(tmp_path, compute_metrics=whole, batch_eval_metrics=True)


def test_without_metrics_it_is_said_to_do_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, batch_eval_metrics=True)
    assert "batch_eval_metrics=True has no effect: there is no compute_metrics." in caplog.text


class Resettable(Accuracy):
    """Knows how to begin anew."""

    resets = 0

    def reset(self) -> None:
        self.resets += 1
        self.right = self.all = 0


def test_what_an_evaluation_that_failed_has_fed_is_forgotten(tmp_path: Path) -> None:
    accuracy = Resettable()
    made = trainer(tmp_path, compute_metrics=accuracy, batch_eval_metrics=True)
    before = made.evaluate()["eval_accuracy"]
    accuracy.right, accuracy.all = 0, 10**6  # as something that broke off has left it
    assert made.evaluate()["eval_accuracy"] == before
    assert accuracy.resets == 2
