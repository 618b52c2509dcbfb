"""Evaluation and prediction, in one process and in several."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from drivetrain.data import default_data_collator
from drivetrain.evaluation import (
    EvalPrediction,
    PredictionOutput,
    evaluation_loop,
    prediction_step,
    speed_metrics,
)

ROWS = 11
FEW = 7  # of three ranks with two rows each two have nothing to do in the second batch


class Gather:
    """Collects over the ranks of the default group."""

    def collect(self, tensor):
        if not torch.distributed.is_initialized():
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor)
        return torch.cat(parts)


class Model(torch.nn.Module):
    """The loss of a batch is the mean of x over its rows; logits are as wide as the longest row of the batch."""

    def forward(self, x, n, labels=None):
        width = int(n.max())
        logits = x[:, None].expand(-1, width)
        if labels is None:
            return {"logits": logits}
        return {"loss": x.mean(), "logits": logits, "hidden": None, "extra": x[:, None]}


class Trainer:
    def __init__(self, model=None, rank=0, world=1, **arguments):
        defaults = {
            "prediction_loss_only": False,
            "eval_batch_size": 4,
            "past_index": -1,
            "include_inputs_for_metrics": False,
            "label_names": None,
            "eval_accumulation_steps": None,
            "auto_find_batch_size": False,
            "batch_eval_metrics": False,
        }
        self.args = SimpleNamespace(**defaults | arguments)
        self.model = self.model_wrapped = model if model is not None else Model()
        self.run = SimpleNamespace(
            processes=SimpleNamespace(rank=rank, world_size=world, device=torch.device("cpu")),
            strategy=Gather(),
            device=torch.device("cpu"),
            prediction=None,
            eval_dataloader=None,
        )
        self._eval_batch_size = self.args.eval_batch_size
        self._past = None
        self.label_names = ["labels"]
        self.can_return_loss = False
        self.compute_metrics = None
        self.preprocess_logits_for_metrics = None
        self.callback_handler = SimpleNamespace(eval_dataloader=None)
        self.seen = []

    def _prepare_inputs(self, inputs):
        return dict(inputs)

    def compute_loss_context_manager(self):
        return torch.autocast("cpu", enabled=False)

    def compute_loss(self, model, inputs, return_outputs=False):
        outputs = model(**inputs)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        return prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)

    def _fire_prediction_step(self):
        progress = self.run.prediction
        self.seen.append((progress.description, progress.batches, progress.done, progress.rows))


def rows(labels=True, number=ROWS):
    data = [{"x": float(i * i), "n": 1 + i // 4} for i in range(number)]
    return [row | {"labels": i} for i, row in enumerate(data)] if labels else data


def loader(data=None, batch_size=4, **options):
    return DataLoader(
        rows() if data is None else data, batch_size, collate_fn=default_data_collator, **options
    )


class Stream(IterableDataset):
    def __init__(self, number=ROWS):
        self.number = number

    def __iter__(self):
        return iter(rows(number=self.number))


def test_the_loss_is_the_mean_over_rows():
    output = evaluation_loop(Trainer(), loader(), "Evaluation", True)
    assert output.metrics == {"eval_loss": pytest.approx(sum(i * i for i in range(ROWS)) / ROWS)}
    assert (output.predictions, output.label_ids, output.num_samples) == (None, None, ROWS)


@pytest.mark.parametrize("accumulation", [None, 1, 2])
def test_predictions_and_labels_keep_their_order(accumulation):
    trainer = Trainer(eval_accumulation_steps=accumulation)
    output = evaluation_loop(trainer, loader(), "Prediction", metric_key_prefix="test")
    logits, extra = output.predictions
    assert logits.shape == (ROWS, 3)
    assert logits[:4].tolist() == [[float(i * i), -100, -100] for i in range(4)]
    assert extra[:, 0].tolist() == [float(i * i) for i in range(ROWS)]
    assert output.label_ids.tolist() == list(range(ROWS))
    assert list(output.metrics) == ["test_loss"]
    assert trainer.seen == [("Prediction", 3, 1, 4), ("Prediction", 3, 2, 8), ("Prediction", 3, 3, 11)]
    assert trainer.run.prediction is None
    assert not trainer.model.training


def test_metrics_are_prefixed_and_plain():
    trainer = Trainer(include_inputs_for_metrics=True)
    trainer.model.main_input_name = "x"

    def compute(given):
        predictions, labels, inputs = given
        assert labels.tolist() == list(range(ROWS))
        assert np.array_equal(predictions[1][:, 0], inputs)
        return {"right": np.float64(0.5), "eval_kept": torch.tensor(1), "n": {"a": np.int64(2)}}

    trainer.compute_metrics = compute
    metrics = evaluation_loop(trainer, loader(), "Evaluation").metrics
    assert {name: value for name, value in metrics.items() if name != "eval_loss"} == {
        "eval_right": 0.5, "eval_kept": 1, "eval_n": {"a": 2},
    }  # fmt: skip
    json.dumps(metrics)


def test_without_labels_there_is_no_loss_and_no_metric():
    trainer = Trainer()
    trainer.compute_metrics = lambda given: pytest.fail("there are no labels")
    output = evaluation_loop(trainer, loader(rows(labels=False)), "Prediction")
    assert output.metrics == {}
    assert output.label_ids is None
    assert output.predictions.shape == (ROWS, 3)


def test_logits_are_processed_before_they_are_kept():
    trainer = Trainer()
    trainer.preprocess_logits_for_metrics = lambda logits, labels: logits[1][:, 0] + labels
    output = evaluation_loop(trainer, loader(), "Evaluation")
    assert output.predictions.tolist() == [float(i * i + i) for i in range(ROWS)]


def test_a_stream_counts_what_it_gave():
    trainer = Trainer()
    output = evaluation_loop(trainer, loader(Stream()), "Evaluation")
    assert output.num_samples == ROWS
    assert output.label_ids.tolist() == list(range(ROWS))
    assert trainer.seen[-1] == ("Evaluation", None, 3, ROWS)


def test_drop_last_leaves_whole_batches():
    output = evaluation_loop(Trainer(), loader(drop_last=True), "Evaluation")
    assert output.label_ids.tolist() == list(range(8))
    assert output.metrics["eval_loss"] == pytest.approx(sum(i * i for i in range(8)) / 8)


def test_half_precision_is_kept_as_numpy_can():
    class Half(torch.nn.Module):
        def forward(self, x, n, labels):
            return (x.mean().bfloat16(), x.bfloat16())

    output = evaluation_loop(Trainer(Half()), loader(), "Evaluation")
    assert output.predictions.dtype == np.float32


def step(model, inputs, **changes):
    trainer = Trainer(model)
    for name, value in changes.items():
        setattr(trainer, name, value)
    return prediction_step(trainer, model, inputs, False, changes.get("ignore_keys"))


def test_outputs_of_every_kind():
    x = torch.ones(1, 2)

    class Returns(torch.nn.Module):
        def __init__(self, give):
            super().__init__()
            self.give = give

        def forward(self, **inputs):
            return self.give

    loss = torch.tensor(2.0)
    assert step(Returns((loss, x)), {"labels": x})[1] is not None
    assert step(Returns((loss, x)), {"labels": x})[1].shape == (1, 2)
    assert len(step(Returns((loss, x, x)), {"labels": x})[1]) == 2
    assert step(Returns((loss,)), {"labels": x})[1] is None
    assert step(Returns(x), {"x": x})[1].shape == (1, 2)  # one row is a row, not a tuple of one
    assert len(step(Returns((x, x)), {"x": x})[1]) == 2
    assert step(Returns({"loss": loss, "logits": x, "cache": x}), {"labels": x}, ignore_keys=["cache"])[
        1
    ].shape == (1, 2)
    # Without labels a "loss" among the outputs is an output.
    assert len(step(Returns({"loss": loss, "logits": x}), {"x": x})[1]) == 2
    model = Returns({"loss": loss, "logits": x, "cache": x})
    model.config = SimpleNamespace(keys_to_ignore_at_inference=["cache"])
    assert step(model, {"labels": x})[1].shape == (1, 2)

    got = step(Returns({"loss": loss, "a": x}), {"x": x}, label_names=[], can_return_loss=True)
    assert (got[0].item(), got[2]) == (2.0, None)
    got = step(
        Returns({"loss": loss, "a": x}), {"x": x, "return_loss": False}, label_names=[], can_return_loss=True
    )
    assert got[0] is None
    got = step(Returns({"loss": loss, "a": x}), {"u": x, "v": x}, label_names=["u", "v"])
    assert len(got[2]) == 2
    assert step(Returns({"a": x}), {"u": x, "v": None}, label_names=["u", "v"])[0] is None


def test_labels_that_the_loss_pops_are_kept():
    class Popping(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            inputs.pop("labels")
            return torch.tensor([1.0, 3.0]), (None, torch.ones(2, 1))

    trainer = Popping()
    inputs = {"x": torch.ones(2), "labels": torch.tensor([4, 5])}
    loss, logits, labels = prediction_step(trainer, trainer.model, inputs, False)
    assert loss.item() == 2.0
    assert labels.tolist() == [4, 5]
    assert logits.shape == (2, 1)
    assert "labels" in inputs


def test_eval_prediction_unpacks():
    predictions, labels = EvalPrediction([1], [2])
    assert (predictions, labels) == ([1], [2])
    given = EvalPrediction([1], [2], [3])
    assert list(given) == [[1], [2], [3]] == [given[0], given[1], given[2]]
    for index in (2, -1):
        with pytest.raises(IndexError):
            EvalPrediction([1], [2])[index]
    assert PredictionOutput(1, 2, {})._fields == ("predictions", "label_ids", "metrics")


def test_speed(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 12.34567)
    assert speed_metrics("train", 10.0, num_samples=10, num_steps=3, num_tokens=7) == {
        "train_runtime": 2.3457,
        "train_samples_per_second": 4.263,
        "train_steps_per_second": 1.279,
        "train_tokens_per_second": 2.984,
    }
    assert speed_metrics("eval", 12.34567, 3) == {"eval_runtime": 0.0}


def evaluate_on(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    for name, data in {"map": rows(number=FEW), "stream": Stream(FEW)}.items():
        trainer = Trainer(rank=rank, world=world, include_inputs_for_metrics=True)
        trainer.model.main_input_name = "x"
        given = []
        trainer.compute_metrics = lambda prediction, given=given: given.append(prediction) or {}
        output = evaluation_loop(trainer, loader(data, batch_size=2), "Evaluation")
        torch.save(
            [*output.predictions, output.label_ids, given[0].inputs, output.metrics, output.num_samples],
            f"{folder}/{name}-{rank}.pt",
        )
    torch.distributed.destroy_process_group()


def test_ranks_together_evaluate_every_row_once(tmp_path):
    world = 3
    torch.multiprocessing.spawn(evaluate_on, (world, str(tmp_path)), nprocs=world)
    alone = evaluation_loop(Trainer(), loader(rows(number=FEW), batch_size=2), "Evaluation")
    for name in ("map", "stream"):
        for rank in range(world):
            saved = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=False)
            logits, extra, labels, inputs, metrics, number = saved
            assert np.array_equal(logits, alone.predictions[0])
            assert np.array_equal(extra, alone.predictions[1])
            assert labels.tolist() == alone.label_ids.tolist()
            assert inputs.tolist() == [float(i * i) for i in range(FEW)]
            assert metrics == {"eval_loss": pytest.approx(alone.metrics["eval_loss"])}
            assert number == FEW
