"""Corners where two settings meet, found by asking what a run could still do differently."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from fixtures import (
    Net,
    Ragged,
    Rows,
    SizedStream,
    Stream,
    TupleNet,
    accuracy,
    bert,
    data,
    gpt2,
    noisy,
    pad_tokens,
    quietly_seeded,
    rows,
    text_rows,
    tokenizer,
)
from kit import Kit, case, settings
from torch import nn

# Data that draw random numbers now and then, from each of the three generators


class Sometimes(Rows):
    """Draws for one row in six, so some batches are fetched without a draw."""

    source = "torch"

    def __getitem__(self, index: int) -> Any:
        row = super().__getitem__(index)
        if index % 6:
            return row
        draws = {"torch": lambda: float(torch.randn(())), "numpy": np.random.normal, "python": random.random}
        return {**row, "x": row["x"] + draws[self.source]()}


for _source in ("torch", "numpy", "python"):

    @case(f"corner/sometimes-random-{_source}")
    def _(k: Kit, source: str = _source) -> None:
        train, held_out = Sometimes(rows(22)), Sometimes(rows(10, 2))
        train.source = held_out.source = source
        trainer = k.trainer(
            Net(dropout=0.3),
            train=train,
            eval=held_out,
            evaluation_strategy="steps",
            eval_steps=4,
            num_train_epochs=3,
        )
        k.train(trainer)


@case("corner/late-random")
def _(k: Kit) -> None:
    """Nothing is drawn in the first epoch, much in the second."""

    class Late(Rows):
        def __getitem__(self, index: int) -> Any:
            row = super().__getitem__(index)
            late = len(self.fetched) > 30
            return {**row, "x": row["x"] + torch.randn(6)} if late else row

    k.train(k.trainer(Net(dropout=0.3), train=Late(rows(22)), num_train_epochs=3))


@case("corner/own-loader-random-collator")
def _(k: Kit) -> None:
    """A loader of the user's own has no lookahead."""

    class Own(k.hf.Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_size=5, shuffle=True, collate_fn=noisy
            )

    k.train(k.trainer(Net(dropout=0.3), cls=Own, evaluation_strategy="epoch"))


@case("corner/own-loader-made-by-super")
def _(k: Kit) -> None:
    class Own(k.hf.Trainer):
        def get_train_dataloader(self) -> Any:
            self.train_dataset = data(17, seed=6)
            return super().get_train_dataloader()

    k.train(k.trainer(Net(dropout=0.3), cls=Own, data_collator=noisy))


@case("corner/random-stream-of-rows")
def _(k: Kit) -> None:
    class Noise(Stream):
        def __iter__(self) -> Any:
            for i, row in enumerate(self.rows):
                yield {**row, "x": row["x"] + torch.randn(6) * (i % 5 == 4)}

    k.train(k.trainer(Net(dropout=0.3), train=Noise(rows(14)), max_steps=10, gradient_accumulation_steps=3))


@case("corner/model-draws-numpy")
def _(k: Kit) -> None:
    class Drawing(Net):
        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(x + np.random.normal() * 0.1 * self.training)

    def collate(batch: list[Any]) -> Any:
        return {**noisy(batch), "x": torch.stack([row["x"] for row in batch]) * random.uniform(0.9, 1.1)}

    k.train(k.trainer(Drawing(), data_collator=collate))


@case("corner/callback-draws")
def _(k: Kit) -> None:
    class Drawing(k.hf.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            torch.rand(state.global_step)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            torch.rand(1)

    k.train(k.trainer(Net(dropout=0.3), callbacks=[Drawing()], num_train_epochs=3))


# Lengths that are not true, workers over streams


@case("corner/stream-shorter-than-it-says")
def _(k: Kit) -> None:
    class Short(SizedStream):
        def __len__(self) -> int:
            return 30

    k.train(k.trainer(train=Short(rows(22)), num_train_epochs=2))


@case("corner/stream-longer-than-it-says")
def _(k: Kit) -> None:
    class Long(SizedStream):
        def __len__(self) -> int:
            return 10

    k.train(k.trainer(train=Long(rows(22)), num_train_epochs=2))


@case("corner/stream-one-worker")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(rows(14)), max_steps=6, dataloader_num_workers=1))


@case("corner/stream-that-is-used-up")
def _(k: Kit) -> None:
    class Once(Stream):
        def __iter__(self) -> Any:
            while self.rows:
                yield self.rows.pop(0)

    k.train(k.trainer(train=Once(rows(22)), max_steps=4))


@case("corner/hugging-face-stream-shuffled")
def _(k: Kit) -> None:
    import datasets

    table = rows(22)
    columns = {"x": [row["x"].tolist() for row in table], "labels": [row["labels"] for row in table]}
    train = datasets.Dataset.from_dict(columns).to_iterable_dataset().shuffle(seed=3, buffer_size=8)
    k.train(k.trainer(train=train, max_steps=5))


@case("corner/subset-and-concatenation")
def _(k: Kit) -> None:
    both = torch.utils.data.ConcatDataset([data(9), data(8, seed=4)])
    k.train(k.trainer(train=torch.utils.data.Subset(both, range(1, 16))))


@case("corner/one-row")
def _(k: Kit) -> None:
    k.train(k.trainer(train=data(1), num_train_epochs=4, gradient_accumulation_steps=2))


@case("corner/group-by-length-no-length-column")
def _(k: Kit) -> None:
    import datasets

    table = text_rows(25, lengths=(1, 12))
    train = datasets.Dataset.from_dict({key: [row[key] for row in table] for key in table[0]})
    k.train(k.trainer(bert(), train=train, tokenizer=tokenizer(), group_by_length=True, adam_epsilon=1e-4))


@case("corner/group-by-length-drop-last-evaluated")
def _(k: Kit) -> None:
    trainer = k.trainer(
        bert(dropout=0.1),
        train=Rows(text_rows(26, lengths=(1, 12))),
        eval=Rows(text_rows(8, 2, lengths=(1, 12))),
        tokenizer=tokenizer(),
        group_by_length=True,
        dataloader_drop_last=True,
        evaluation_strategy="steps",
        eval_steps=4,
        adam_epsilon=1e-4,
    )
    k.train(trainer)


# Best models and stopping, over several runs


@case("corner/early-stopping-twice")
def _(k: Kit) -> None:
    trainer = k.trainer(
        train=data(14),
        eval=data(14, seed=9),
        callbacks=[k.hf.EarlyStoppingCallback(2)],
        evaluation_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        learning_rate=0.3,
        num_train_epochs=5,
    )
    k.train(trainer)
    k.train(trainer, "again")


@case("corner/best-then-trained-on")
def _(k: Kit) -> None:
    trainer = k.trainer(
        train=data(14),
        eval=data(14, seed=9),
        evaluation_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=2,
        learning_rate=0.3,
        num_train_epochs=4,
    )
    k.train(trainer)
    k.train(trainer, "again")


@case("corner/best-never-saved")
def _(k: Kit) -> None:
    k.train(k.trainer(evaluation_strategy="steps", eval_steps=3, save_steps=30, load_best_model_at_end=True))


class BadEvaluation(Net):
    """The loss of its evaluations number two (and one, if asked) is NaN."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.bad, self.evaluated = bad, 0

    def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
        outputs = super().forward(x, labels)
        if not self.training:
            self.evaluated += 1
            if (self.evaluated + 2) // 3 in self.bad:
                outputs["loss"] = outputs["loss"] * float("nan")
        return outputs


for _bad in ((1,), (2,)):

    @case(f"corner/best-of-nan-{_bad[0]}")
    def _(k: Kit, bad: tuple[int, ...] = _bad) -> None:
        k.train(
            k.trainer(
                BadEvaluation(bad),
                evaluation_strategy="steps",
                eval_steps=2,
                save_steps=2,
                load_best_model_at_end=True,
                save_total_limit=2,
            )
        )


@case("corner/weights-become-nan")
def _(k: Kit) -> None:
    class Broken(Net):
        def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
            outputs = super().forward(x, labels)
            if self.training and self.calls == 4:
                outputs["loss"] = outputs["loss"] * float("nan")
            return outputs

    k.train(k.trainer(Broken(), logging_steps=2, num_train_epochs=2, evaluation_strategy="epoch"))


@case("corner/tied-weights-saved")
def _(k: Kit) -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.twin = quietly_seeded(4, lambda: nn.Linear(6, 8))
            self.twin.weight = self.inner.weight

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(x) + self.twin(x)[:, :3]

    k.train(
        k.trainer(
            Tied(),
            evaluation_strategy="steps",
            eval_steps=3,
            save_steps=3,
            load_best_model_at_end=True,
            learning_rate=0.2,
        )
    )


@case("corner/transposed-weights-saved")
def _(k: Kit) -> None:
    model = Net()
    model.outer.weight = nn.Parameter(model.outer.weight.detach().t().contiguous().t())
    k.train(k.trainer(model, evaluation_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True))


# Schedules and optimizers


@case("corner/own-optimizer-polynomial")
def _(k: Kit) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    k.train(k.trainer(model, optimizers=(optimizer, None), lr_scheduler_type="polynomial", warmup_steps=2))


@case("corner/own-optimizer-some-parameters")
def _(k: Kit) -> None:
    """Clipping sees all parameters, also those that the optimizer does not have."""
    model = Net()
    optimizer = torch.optim.SGD(model.outer.parameters(), lr=0.2)
    k.train(k.trainer(model, optimizers=(optimizer, None), max_grad_norm=0.3, gradient_accumulation_steps=2))


settings("corner/polynomial-tiny-rate", lr_scheduler_type="polynomial", learning_rate=1e-8)
settings(
    "corner/restarts-accumulated", lr_scheduler_type="cosine_with_restarts", gradient_accumulation_steps=4
)
settings("corner/beyond-the-epochs-cosine", lr_scheduler_type="cosine", max_steps=20, warmup_ratio=0.25)
settings("corner/no-clipping", max_grad_norm=None)
settings("corner/zero-epochs", num_train_epochs=0)
settings(
    "corner/defaults",
    learning_rate=5e-5,
    logging_steps=500,
    num_train_epochs=3.0,
    per_device_train_batch_size=8,
)
settings("corner/eval-batches-of-one", evaluation_strategy="epoch", per_device_eval_batch_size=1)
settings(
    "corner/everything-every-step",
    evaluation_strategy="steps",
    eval_steps=1,
    save_steps=1,
    save_total_limit=3,
)
settings(
    "corner/shares-together",
    logging_steps=0.2,
    evaluation_strategy="steps",
    eval_steps=0.25,
    save_steps=0.5,
    load_best_model_at_end=True,
    num_train_epochs=3.5,
)
settings(
    "corner/drop-last-fewer-batches",
    dataloader_drop_last=True,
    gradient_accumulation_steps=7,
    num_train_epochs=5,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=3,
)
settings(
    "corner/first-step-accumulated", logging_first_step=True, logging_steps=3, gradient_accumulation_steps=2
)


# Outputs


@case("corner/smoothing-tuple-predicted")
def _(k: Kit) -> None:
    k.predict(k.trainer(TupleNet(), label_smoothing_factor=0.1, prediction_loss_only=True), data(9, seed=5))


@case("corner/smoothing-without-labels")
def _(k: Kit) -> None:
    trainer = k.trainer(label_smoothing_factor=0.1, num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, Rows([{"x": row["x"]} for row in rows(9, 5)]))


@case("corner/transformer-inputs-for-metrics")
def _(k: Kit) -> None:
    def compute(prediction: Any) -> dict[str, float]:
        return {"shape": prediction.inputs.shape[1], "sum": float(prediction.inputs.sum())}

    trainer = k.trainer(
        bert("BertForTokenClassification"),
        train=Rows(text_rows(14, lengths=(3, 9), labels="token")),
        eval=Rows(text_rows(9, 2, lengths=(3, 9), labels="token")),
        data_collator=pad_tokens,
        compute_metrics=compute,
        include_inputs_for_metrics=True,
        evaluation_strategy="epoch",
        adam_epsilon=1e-4,
    )
    k.train(trainer)


@case("corner/gpt2-cache-in-predictions")
def _(k: Kit) -> None:
    trainer = k.trainer(gpt2(), train=Rows(text_rows(8, labels="causal")))
    k.predict(trainer, Rows(text_rows(6, 2, labels="causal")), ignore_keys=["past_key_values"])
    k.predict(trainer, Rows(text_rows(6, 2, labels="none")), name="unlabelled")


@case("corner/nested-outputs")
def _(k: Kit) -> None:
    class Nested(Net):
        def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
            outputs = super().forward(x, labels)
            return {**outputs, "layers": (self.inner(x), {"norm": x.norm(dim=-1), "pair": [x, x * 2]})}

    trainer = k.trainer(Nested(), eval_accumulation_steps=2)
    k.predict(trainer, data(9, seed=5))


@case("corner/scalar-output")
def _(k: Kit) -> None:
    class Scalar(Net):
        def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
            return {**super().forward(x, labels), "mean": x.mean()}

    k.predict(k.trainer(Scalar()), data(8, seed=5))


@case("corner/ragged-evaluated-in-training")
def _(k: Kit) -> None:
    texts = {"lengths": (2, 9), "labels": "token"}
    seen: list[Any] = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append([list(prediction.predictions.shape), list(prediction.label_ids.shape)])
        return {"padding": float((prediction.predictions == -100).sum())}

    trainer = k.trainer(
        Ragged(),
        train=Rows(text_rows(18, 1, **texts)),
        eval=Rows(text_rows(10, 2, **texts)),
        data_collator=pad_tokens,
        evaluation_strategy="epoch",
        eval_accumulation_steps=2,
        compute_metrics=compute,
    )
    k.train(trainer)
    k.note("seen", seen)


@case("corner/predict-in-a-callback")
def _(k: Kit) -> None:
    class Predicting(k.hf.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            output = trainer.predict(data(6, seed=5))
            k.array(f"predicted-{state.global_step}", output.predictions)

    trainer = k.trainer(Net(dropout=0.3), callbacks=[Predicting()], compute_metrics=accuracy)
    k.train(trainer)


@case("corner/model-left-in-evaluation-mode")
def _(k: Kit) -> None:
    trainer = k.trainer(Net(dropout=0.3), evaluation_strategy="epoch", num_train_epochs=1)
    k.note("before", trainer.model.training)
    k.train(trainer)
    k.note("trained", trainer.model.training)
    trainer.evaluate()
    k.note("evaluated", trainer.model.training)


@case("corner/callbacks-list-changed-by-hand")
def _(k: Kit) -> None:
    seen: list[Any] = []

    class Watching(k.hf.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            seen.append(state.global_step)

    trainer = k.trainer(callbacks=[])
    trainer.callback_handler.callbacks.insert(0, Watching())
    k.train(trainer)
    k.note("seen", seen)


@case("corner/loss-is-a-vector-of-one")
def _(k: Kit) -> None:
    class Vector(Net):
        def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
            outputs = super().forward(x, labels)
            return {**outputs, "loss": outputs["loss"].reshape(1)}

    k.train(k.trainer(Vector(), evaluation_strategy="epoch"))


@case("precision/bf16-loss-outside")
def _(k: Kit) -> None:
    """The model's outputs leave it in float32, so that a loss of one's own is in float32."""
    kinds: list[str] = []

    class Own(k.hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            kinds.append(str(outputs["logits"].dtype))
            loss = nn.functional.cross_entropy(outputs["logits"] @ torch.eye(3), labels)
            return (loss, outputs) if return_outputs else loss

    k.evaluate(k.trainer(cls=Own, bf16=True))
    k.note("kinds", kinds)
