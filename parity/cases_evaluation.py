"""Evaluation and prediction: when, on what, with which outputs kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from fixtures import (
    ManyOutputs,
    Net,
    Ragged,
    Regression,
    Rows,
    Stream,
    TupleNet,
    TwoLabels,
    accuracy,
    data,
    pad_tokens,
    rows,
    text_rows,
    unlabelled,
)
from kit import Kit, case, settings

settings("evaluation/steps", evaluation_strategy="steps", eval_steps=4)
settings("evaluation/steps-as-logging", evaluation_strategy="steps", logging_steps=3)
settings("evaluation/epoch", evaluation_strategy="epoch")
settings("evaluation/share", evaluation_strategy="steps", eval_steps=0.3)
settings("evaluation/delay-steps", evaluation_strategy="steps", eval_steps=2, eval_delay=5)
settings("evaluation/delay-epochs", evaluation_strategy="epoch", num_train_epochs=3, eval_delay=2)
settings("evaluation/delay-fraction", evaluation_strategy="epoch", num_train_epochs=2.5, eval_delay=1.5)
settings("evaluation/large-batches", evaluation_strategy="epoch", per_device_eval_batch_size=32)
settings("evaluation/no-log", evaluation_strategy="steps", eval_steps=3, logging_strategy="no")
settings("evaluation/strategy-without-steps", evaluation_strategy="steps", eval_steps=0, logging_steps=4)


@case("evaluation/metrics")
def _(k: Kit) -> None:
    k.train(k.trainer(compute_metrics=accuracy, evaluation_strategy="epoch"))


@case("evaluation/dict")
def _(k: Kit) -> None:
    sets = {"near": data(10, seed=2), "far": data(7, seed=3)}
    k.train(k.trainer(eval=sets, compute_metrics=accuracy, evaluation_strategy="steps", eval_steps=5))


@case("evaluation/dict-best")
def _(k: Kit) -> None:
    sets = {"near": data(10, seed=2), "far": data(7, seed=3)}
    trainer = k.trainer(
        eval=sets,
        evaluation_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="far_loss",
        greater_is_better=False,
        learning_rate=0.2,
        num_train_epochs=4,
    )
    k.train(trainer)


@case("evaluation/dict-missing-best")
def _(k: Kit) -> None:
    sets = {"near": data(10, seed=2), "far": data(7, seed=3)}
    k.train(
        k.trainer(eval=sets, evaluation_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
    )


@case("evaluation/before-training")
def _(k: Kit) -> None:
    trainer = k.trainer(compute_metrics=accuracy)
    k.evaluate(trainer, "first")
    k.train(trainer)
    k.evaluate(trainer, "last")


@case("evaluation/only")
def _(k: Kit) -> None:
    k.evaluate(k.trainer(Net(dropout=0.5), compute_metrics=accuracy))


@case("evaluation/other-data-and-prefix")
def _(k: Kit) -> None:
    trainer = k.trainer(compute_metrics=accuracy, num_train_epochs=1)
    k.train(trainer)
    k.evaluate(trainer, eval_dataset=data(9, seed=8), metric_key_prefix="held_out")


@case("evaluation/metrics-named-with-prefix")
def _(k: Kit) -> None:
    def compute(prediction: Any) -> dict[str, Any]:
        return {"eval_a": np.float32(0.5), "b": np.int64(3), "c": [np.float64(1.5), 2]}

    k.evaluate(k.trainer(compute_metrics=compute))


@case("evaluation/preprocess-logits")
def _(k: Kit) -> None:
    shapes: list[Any] = []

    def preprocess(logits: Any, labels: Any) -> Any:
        shapes.append([list(logits.shape), list(labels.shape)])
        return logits.argmax(-1)

    def compute(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}

    trainer = k.trainer(
        compute_metrics=compute, preprocess_logits_for_metrics=preprocess, evaluation_strategy="epoch"
    )
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))
    k.note("shapes", shapes)


@case("evaluation/accumulation-one")
def _(k: Kit) -> None:
    k.predict(k.trainer(compute_metrics=accuracy, eval_accumulation_steps=1), data(11, seed=5))


@case("evaluation/accumulation-two")
def _(k: Kit) -> None:
    trainer = k.trainer(compute_metrics=accuracy, eval_accumulation_steps=2, evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, data(11, seed=5))


@case("evaluation/loss-only")
def _(k: Kit) -> None:
    trainer = k.trainer(compute_metrics=accuracy, prediction_loss_only=True, evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("evaluation/inputs-for-metrics")
def _(k: Kit) -> None:
    def compute(prediction: Any) -> dict[str, float]:
        _, labels, inputs = prediction
        return {"rows": len(labels), "inputs": float(inputs.sum()), "third": float(prediction[2].max())}

    model = Net()
    model.main_input_name = "x"
    k.evaluate(k.trainer(model, compute_metrics=compute, include_inputs_for_metrics=True))


@case("evaluation/no-inputs-for-metrics")
def _(k: Kit) -> None:
    def compute(prediction: Any) -> dict[str, float]:
        _, labels = prediction
        return {"rows": len(labels), "inputs": float(prediction.inputs is None)}

    k.evaluate(k.trainer(compute_metrics=compute))


@case("evaluation/no-dataset")
def _(k: Kit) -> None:
    trainer = k.trainer()
    trainer.eval_dataset = None
    k.evaluate(trainer)


@case("evaluation/strategy-without-dataset")
def _(k: Kit) -> None:
    trainer = k.trainer(evaluation_strategy="epoch")
    trainer.eval_dataset = None
    k.train(trainer)


@case("evaluation/even-drop-last")
def _(k: Kit) -> None:
    trainer = k.trainer(eval=data(12, seed=2), compute_metrics=accuracy, dataloader_drop_last=True)
    k.train(trainer)
    k.evaluate(trainer)


@case("predict/with-labels")
def _(k: Kit) -> None:
    trainer = k.trainer(compute_metrics=accuracy, num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, data(11, seed=5))


@case("predict/without-labels")
def _(k: Kit) -> None:
    trainer = k.trainer(compute_metrics=accuracy, num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, unlabelled())


@case("predict/untrained")
def _(k: Kit) -> None:
    k.predict(k.trainer(), data(11, seed=5))


@case("predict/prefix")
def _(k: Kit) -> None:
    k.predict(k.trainer(compute_metrics=accuracy), data(11, seed=5), metric_key_prefix="final")


@case("predict/tuple")
def _(k: Kit) -> None:
    trainer = k.trainer(TupleNet(), compute_metrics=accuracy, evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, data(11, seed=5))
    k.predict(trainer, unlabelled(), name="unlabelled")


@case("predict/many-outputs")
def _(k: Kit) -> None:
    trainer = k.trainer(ManyOutputs(), num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, data(11, seed=5))
    k.predict(trainer, unlabelled(), name="unlabelled")
    k.predict(trainer, data(11, seed=5), name="fewer", ignore_keys=["hidden"])
    k.predict(trainer, unlabelled(), name="unlabelled-fewer", ignore_keys=["hidden", "scale"])


@case("predict/ignored-in-training")
def _(k: Kit) -> None:
    seen: list[Any] = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(type(prediction.predictions).__name__)
        return {"one": 1.0}

    trainer = k.trainer(ManyOutputs(), compute_metrics=compute, evaluation_strategy="epoch")
    k.train(trainer, ignore_keys_for_eval=["hidden", "scale"])
    k.note("seen", seen)


@case("predict/two-labels")
def _(k: Kit) -> None:
    def weighted(count: int, seed: int) -> Rows:
        return Rows([{**row, "label_weight": 0.5 + i % 3} for i, row in enumerate(rows(count, seed))])

    trainer = k.trainer(TwoLabels(), train=weighted(22, 1), eval=weighted(10, 2), evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, weighted(9, 5))
    k.predict(trainer, data(9, seed=5), name="half-labelled")


@case("predict/label-names")
def _(k: Kit) -> None:
    trainer = k.trainer(label_names=["labels"], num_train_epochs=1, compute_metrics=accuracy)
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("predict/label-names-empty")
def _(k: Kit) -> None:
    k.predict(k.trainer(label_names=[]), data(9, seed=5))


@case("predict/regression")
def _(k: Kit) -> None:
    def floats(count: int, seed: int) -> Rows:
        return Rows([{"x": row["x"], "label": float(row["x"].sum())} for row in rows(count, seed)])

    trainer = k.trainer(Regression(), train=floats(22, 1), eval=floats(10, 2), evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, floats(9, 5))


@case("predict/ragged")
def _(k: Kit) -> None:
    texts = {"lengths": (2, 9), "labels": "token"}
    trainer = k.trainer(
        Ragged(),
        train=Rows(text_rows(18, 1, **texts)),
        eval=Rows(text_rows(10, 2, **texts)),
        data_collator=pad_tokens,
        evaluation_strategy="epoch",
        compute_metrics=lambda prediction: {"padding": float((prediction.label_ids == -100).sum())},
    )
    k.train(trainer)
    k.predict(trainer, Rows(text_rows(11, 5, **texts)))


@case("predict/ragged-accumulated")
def _(k: Kit) -> None:
    texts = {"lengths": (2, 9), "labels": "token"}
    trainer = k.trainer(
        Ragged(),
        train=Rows(text_rows(18, 1, **texts)),
        data_collator=pad_tokens,
        eval_accumulation_steps=1,
    )
    k.predict(trainer, Rows(text_rows(11, 5, **texts)))


@case("predict/stream-without-labels")
def _(k: Kit) -> None:
    k.predict(k.trainer(), Stream([{"x": row["x"]} for row in rows(9, 5)]))


@case("predict/between-two-trainings")
def _(k: Kit) -> None:
    trainer = k.trainer(Net(dropout=0.2), num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))
    k.train(trainer, "again")


@case("predict/loss-of-one-row")
def _(k: Kit) -> None:
    k.predict(k.trainer(compute_metrics=accuracy), data(1, seed=5))


class Recurrent(Net):
    """A model with a memory: what it gives as its last output, it is given back as `mems`."""

    def forward(self, x: Any, labels: Any = None, mems: Any = None) -> Any:
        outputs = super().forward(x if mems is None else x + mems, labels)
        new = 0.5 * x.detach().mean(0, keepdim=True) + (0 if mems is None else 0.5 * mems)
        if labels is None:
            return outputs["logits"], new
        return outputs["loss"], outputs["logits"], new


@case("past-index/training")
def _(k: Kit) -> None:
    trainer = k.trainer(
        Recurrent(), past_index=2, evaluation_strategy="epoch", num_train_epochs=3, watch=False
    )
    k.train(trainer)


@case("past-index/evaluation-and-prediction")
def _(k: Kit) -> None:
    trainer = k.trainer(Recurrent(), past_index=2, watch=False)
    k.evaluate(trainer)
    k.evaluate(trainer, "again")
    k.predict(trainer, data(8, seed=5))


@case("past-index/without-labels")
def _(k: Kit) -> None:
    k.predict(k.trainer(Recurrent(), past_index=2, watch=False), unlabelled())


@case(
    "past-index/mid-epoch", ours="an evaluation in the midst of an epoch leaves training's memory as it was"
)
def _(k: Kit) -> None:
    values: dict[str, Any] = {
        "past_index": 2,
        "num_train_epochs": 1,
        "watch": False,
    }  # it draws for the next epoch
    plain = k.trainer(Recurrent(), **values)
    plain.train()
    evaluated = k.trainer(Recurrent(), evaluation_strategy="steps", eval_steps=2, **values)
    evaluated.train()
    for name, weight in plain.model.state_dict().items():
        assert (weight == evaluated.model.state_dict()[name]).all(), name
