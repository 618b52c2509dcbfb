"""More corners: old spellings, state changed by callbacks, nested batches, other shapes of evaluation."""

from __future__ import annotations

from typing import Any

import torch
from fixtures import Net, Regression, Rows, Stream, TupleNet, accuracy, bert, data, rows, text_rows, tokenizer
from kit import Kit, case, settings
from torch import nn


@case("alias/per-gpu-batch-size")
def _(k: Kit) -> None:
    given = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "evaluation_strategy": "epoch"}
    sizes = {"per_gpu_train_batch_size": 3, "per_gpu_eval_batch_size": 2}
    args = k.hf.TrainingArguments(
        str(k.folder / "out"), num_train_epochs=2, logging_steps=3, **sizes, **given
    )
    k.train(k.trainer(args=args))


settings("alias/no-cuda", no_cuda=True)
settings("alias/enumerations", evaluation_strategy="epoch", save_strategy="epoch", lr_scheduler_type="cosine")
settings("alias/overwrite", overwrite_output_dir=True, save_steps=5, do_train=True, do_eval=True)


def changing(k: Kit, event: str, change: Any) -> Any:
    def method(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        change(args, state, control, given)

    return type("Changing", (k.hf.TrainerCallback,), {event: method})()


@case("state/fewer-steps")
def _(k: Kit) -> None:
    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        state.max_steps = 4

    k.train(k.trainer(callbacks=[changing(k, "on_train_begin", change)]))


@case("state/more-steps")
def _(k: Kit) -> None:
    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        state.max_steps = 10

    k.train(k.trainer(callbacks=[changing(k, "on_train_begin", change)], max_steps=7, save_steps=4))


@case("state/other-intervals")
def _(k: Kit) -> None:
    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        state.logging_steps, state.eval_steps, state.save_steps = 2, 4, 5

    trainer = k.trainer(
        callbacks=[changing(k, "on_train_begin", change)],
        evaluation_strategy="steps",
        eval_steps=3,
        save_steps=7,
    )
    k.train(trainer)


@case("state/arguments-changed-in-the-run")
def _(k: Kit) -> None:
    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        args.logging_steps = 3
        args.save_total_limit = 1
        args.eval_delay = 100

    trainer = k.trainer(
        callbacks=[changing(k, "on_epoch_end", change)],
        evaluation_strategy="steps",
        eval_steps=3,
        save_steps=2,
    )
    k.train(trainer)


@case("state/rate-set-by-a-callback")
def _(k: Kit) -> None:
    """With a user's optimizer and scheduler of torch: what the scheduler makes of it."""

    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        if state.global_step == 3:
            given["lr_scheduler"].base_lrs = [0.2]

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    k.train(k.trainer(model, callbacks=[changing(k, "on_step_end", change)], optimizers=(optimizer, None)))


@case("state/frozen-in-the-run")
def _(k: Kit) -> None:
    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        given["model"].inner.requires_grad_(state.global_step < 3)

    k.train(k.trainer(callbacks=[changing(k, "on_step_end", change)], weight_decay=0.1))


@case("state/unfrozen-in-the-run")
def _(k: Kit) -> None:
    """A parameter that is frozen at the beginning is in no group; its gradient counts in the norm."""

    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        given["model"].inner.requires_grad_(state.global_step >= 3)

    model = Net()
    model.inner.requires_grad_(False)
    trainer = k.trainer(model, callbacks=[changing(k, "on_step_end", change)], max_grad_norm=0.2, optim="sgd")
    k.train(trainer)


@case("state/log-from-outside")
def _(k: Kit) -> None:
    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        trainer.log({"mine": float(state.global_step)})

    trainer = k.trainer(callbacks=[changing(k, "on_step_end", change)], logging_steps=4)
    k.train(trainer)
    trainer.log({"after": 1.0})


@case("state/save-from-outside")
def _(k: Kit) -> None:
    saved: list[Any] = []

    def change(args: Any, state: Any, control: Any, given: Any) -> None:
        trainer.save_model(str(k.folder / f"model-{state.global_step}"))
        saved.append((k.folder / f"model-{state.global_step}").is_dir())

    trainer = k.trainer(callbacks=[changing(k, "on_epoch_end", change)])
    k.train(trainer)
    k.note("saved", saved)


# Batches of other shapes


@case("batches/nested")
def _(k: Kit) -> None:
    class Nested(Net):
        def forward(self, features: Any, labels: Any = None) -> Any:
            return super().forward(features["a"][0] + features["b"], labels)

    def collate(batch: list[Any]) -> Any:
        x = torch.stack([row["x"] for row in batch])
        return {
            "features": {"a": (x, 3), "b": x * 0.5},
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    trainer = k.trainer(
        Nested(), data_collator=collate, evaluation_strategy="epoch", remove_unused_columns=False
    )
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("batches/none-values")
def _(k: Kit) -> None:
    class Optional(Net):
        def forward(self, x: Any, scale: Any = None, labels: Any = None) -> Any:
            return super().forward(x if scale is None else x * scale, labels)

    train = Rows([{**row, "scale": None} for row in rows(22)])
    k.train(k.trainer(Optional(), train=train, num_train_epochs=1))


@case("batches/strings-are-dropped")
def _(k: Kit) -> None:
    class Named(Net):
        def forward(self, x: Any, name: Any = None, labels: Any = None) -> Any:
            return super().forward(x, labels)

    k.train(k.trainer(Named(), train=data(22, name="a string"), num_train_epochs=1))


@case("batches/user-dict")
def _(k: Kit) -> None:
    from collections import UserDict

    def collate(batch: list[Any]) -> Any:
        return UserDict(
            x=torch.stack([row["x"] for row in batch]), labels=torch.tensor([row["labels"] for row in batch])
        )

    trainer = k.trainer(data_collator=collate, evaluation_strategy="epoch")
    k.train(trainer)


@case("batches/of-changing-size")
def _(k: Kit) -> None:
    """A collator that drops rows: evaluations count the rows of the data set."""

    def collate(batch: list[Any]) -> Any:
        kept = batch[: max(1, len(batch) - 1)]
        return {
            "x": torch.stack([row["x"] for row in kept]),
            "labels": torch.tensor([row["labels"] for row in kept]),
        }

    k.train(k.trainer(data_collator=collate))


@case("batches/float-labels")
def _(k: Kit) -> None:
    def floats(count: int, seed: int) -> Rows:
        return Rows([{"x": row["x"], "labels": float(row["x"].mean())} for row in rows(count, seed)])

    def compute(prediction: Any) -> dict[str, float]:
        return {"mae": float(abs(prediction.predictions - prediction.label_ids).mean())}

    trainer = k.trainer(
        Regression(),
        train=floats(22, 1),
        eval=floats(10, 2),
        compute_metrics=compute,
        evaluation_strategy="steps",
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="mae",
        greater_is_better=False,
        learning_rate=0.1,
    )
    k.train(trainer)


@case("batches/tokenizer-and-collator")
def _(k: Kit) -> None:
    """A collator of one's own wins over the tokenizer."""
    trainer = k.trainer(
        bert(),
        train=Rows(text_rows(14)),
        tokenizer=tokenizer(),
        data_collator=lambda batch: {key: torch.tensor([row[key] for row in batch]) for key in batch[0]},
        adam_epsilon=1e-4,
        save_steps=3,
    )
    k.train(trainer)


@case("batches/masked-language")
def _(k: Kit) -> None:
    """transformers' masking collator draws at random, beside dropout."""
    import transformers

    words = tokenizer()
    words.mask_token = "[UNK]"
    collator = transformers.DataCollatorForLanguageModeling(words, mlm_probability=0.3)
    trainer = k.trainer(
        bert("BertForMaskedLM", dropout=0.1),
        train=Rows(text_rows(22, labels="none")),
        eval=Rows(text_rows(9, 2, labels="none")),
        data_collator=collator,
        evaluation_strategy="steps",
        eval_steps=4,
        adam_epsilon=1e-4,
    )
    k.train(trainer)


# Outputs and losses of other shapes


@case("outputs/loss-in-another-dtype")
def _(k: Kit) -> None:
    k.train(k.trainer(Net().double(), data_collator=_double, evaluation_strategy="epoch", num_train_epochs=1))


def _double(batch: list[Any]) -> Any:
    return {
        "x": torch.stack([row["x"] for row in batch]).double(),
        "labels": torch.tensor([row["labels"] for row in batch]),
    }


@case("outputs/half-precision-logits")
def _(k: Kit) -> None:
    class Half(Net):
        def forward(self, x: Any, labels: Any = None) -> Any:
            outputs = super().forward(x, labels)
            return {**outputs, "logits": outputs["logits"].bfloat16()}

    trainer = k.trainer(Half(), compute_metrics=accuracy, evaluation_strategy="epoch", num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("outputs/tuple-of-three")
def _(k: Kit) -> None:
    class Three(TupleNet):
        def forward(self, x: Any, labels: Any = None) -> Any:
            return (*super().forward(x, labels), self.inner(x))

    trainer = k.trainer(Three(), evaluation_strategy="epoch", compute_metrics=accuracy, num_train_epochs=1)
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("outputs/no-loss-is-an-error")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Rows([{"x": row["x"]} for row in rows(22)])))


@case("outputs/no-gradient-is-an-error")
def _(k: Kit) -> None:
    model = Net()
    model.requires_grad_(False)
    k.train(k.trainer(model))


@case("outputs/loss-not-depending-on-some")
def _(k: Kit) -> None:
    """Parameters that have a gradient now and then."""

    class Now(Net):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.ones(3))

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().logits(x)
            return logits * self.extra if self.calls % 3 == 1 else logits

    k.train(k.trainer(Now(), weight_decay=0.1, optim="adamw_hf", num_train_epochs=3))
    k.train(
        k.trainer(Now(), weight_decay=0.1, num_train_epochs=3, gradient_accumulation_steps=2), "accumulated"
    )


@case("outputs/stream-evaluated-by-steps")
def _(k: Kit) -> None:
    class Noise(Stream):
        def __iter__(self) -> Any:
            for row in self.rows:
                yield {**row, "x": row["x"] + 0.1 * torch.randn(6)}

    trainer = k.trainer(
        Net(dropout=0.3),
        train=Noise(rows(22)),
        eval=Noise(rows(10, 2)),
        max_steps=10,
        compute_metrics=accuracy,
        evaluation_strategy="steps",
        eval_steps=3,
    )
    k.train(trainer)


@case("outputs/adafactor-bert")
def _(k: Kit) -> None:
    model = bert(dropout=0.1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("key.bias" not in name)
    k.train(
        k.trainer(model, train=Rows(text_rows(14)), optim="adafactor", weight_decay=0.05, warmup_ratio=0.2)
    )


for _optim in ("sgd", "adagrad", "rmsprop", "adamw_torch", "adafactor"):
    settings(
        f"together/{_optim}",
        optim=_optim,
        lr_scheduler_type="polynomial",
        warmup_ratio=0.2,
        weight_decay=0.05,
        label_smoothing_factor=0.1,
        gradient_accumulation_steps=4,
        num_train_epochs=3.5,
        max_grad_norm=0.3,
        evaluation_strategy="steps",
        eval_steps=0.3,
        save_steps=0.3,
        load_best_model_at_end=True,
        save_total_limit=1,
        logging_steps=2,
        logging_first_step=True,
        seed=11,
    )
