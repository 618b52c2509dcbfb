"""Models: precision, label smoothing, transformers' own, the optimizers people bring, several runs of one trainer."""

from __future__ import annotations

from typing import Any

import torch
from fixtures import (
    Net,
    Ragged,
    Regression,
    Rows,
    TupleNet,
    accuracy,
    bert,
    data,
    gpt2,
    pad_tokens,
    quietly_seeded,
    t5,
    text_rows,
)
from kit import Kit, case
from torch import nn

# Precision. bf16 is autocast over float32 weights; outputs leave the model as float32.


def bf16(name: str, model: Any = Net, **arguments: Any) -> None:
    def function(k: Kit) -> None:
        trainer = k.trainer(model(), bf16=True, compute_metrics=accuracy, **arguments)
        k.train(trainer)
        k.evaluate(trainer)
        k.predict(trainer, data(9, seed=5))

    case(f"precision/bf16-{name}")(function)


bf16("plain")
bf16("tuple", TupleNet)
bf16("accumulated", gradient_accumulation_steps=4, num_train_epochs=3)
bf16("evaluated", evaluation_strategy="steps", eval_steps=3)
bf16("label-smoothing", label_smoothing_factor=0.2, evaluation_strategy="epoch")
bf16("sgd-clipped", optim="sgd", max_grad_norm=0.1, learning_rate=0.2)
bf16("dropout", lambda: Net(dropout=0.3))
bf16("saved", save_steps=4, save_total_limit=1)


@case("precision/bf16-evaluation-only")
def _(k: Kit) -> None:
    trainer = k.trainer(bf16=True, compute_metrics=accuracy)
    k.evaluate(trainer)
    k.predict(trainer, data(9, seed=5))


@case("precision/bf16-bert")
def _(k: Kit) -> None:
    trainer = k.trainer(
        bert(), train=Rows(text_rows(14)), eval=Rows(text_rows(8, 2)), bf16=True, adam_epsilon=1e-4
    )
    k.train(trainer)
    k.predict(trainer, Rows(text_rows(6, 5)))


class Casting(Net):
    """Takes float32 rows whatever the dtype of its weights is."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return super().logits(x.to(self.inner.weight.dtype))


@case("precision/bf16-full-eval")
def _(k: Kit) -> None:
    trainer = k.trainer(Casting(), bf16_full_eval=True, compute_metrics=accuracy)
    k.evaluate(trainer)
    k.predict(trainer, data(9, seed=5))
    k.trainers.clear()  # the reference leaves the weights in bf16, ours as they were


@case("precision/bf16-full-eval-in-training")
def _(k: Kit) -> None:
    trainer = k.trainer(Casting(), bf16_full_eval=True, evaluation_strategy="epoch", compute_metrics=accuracy)
    k.train(trainer)


@case("precision/bf16-full-eval-after-training")
def _(k: Kit) -> None:
    trainer = k.trainer(Casting(), bf16_full_eval=True, compute_metrics=accuracy)
    k.train(trainer)
    k.weights("trained", trainer.model)
    k.predict(trainer, data(9, seed=5))
    k.trainers.clear()


@case("precision/bf16-weights")
def _(k: Kit) -> None:
    """A model whose weights are bf16 already."""
    k.train(k.trainer(Casting().to(torch.bfloat16), optim="sgd", learning_rate=0.1))


# Label smoothing


@case("smoothing/dict")
def _(k: Kit) -> None:
    trainer = k.trainer(label_smoothing_factor=0.1, evaluation_strategy="epoch", compute_metrics=accuracy)
    k.train(trainer)
    k.predict(trainer, data(9, seed=5))


@case("smoothing/tuple")
def _(k: Kit) -> None:
    trainer = k.trainer(TupleNet(), label_smoothing_factor=0.3, evaluation_strategy="epoch")
    k.train(trainer)


@case("smoothing/ignored-labels")
def _(k: Kit) -> None:
    texts = {"lengths": (3, 9), "labels": "token"}
    trainer = k.trainer(
        Ragged(),
        train=Rows(text_rows(18, 1, **texts)),
        eval=Rows(text_rows(10, 2, **texts)),
        data_collator=pad_tokens,
        label_smoothing_factor=0.1,
        evaluation_strategy="epoch",
    )
    k.train(trainer)
    k.predict(trainer, Rows(text_rows(7, 5, **texts)))


@case("smoothing/causal-language-model")
def _(k: Kit) -> None:
    train, held_out = Rows(text_rows(12, labels="causal")), Rows(text_rows(8, 2, labels="causal"))
    given = {"label_smoothing_factor": 0.1, "evaluation_strategy": "epoch", "adam_epsilon": 1e-4}
    k.train(k.trainer(gpt2(), train=train, eval=held_out, **given))


@case("smoothing/accumulated")
def _(k: Kit) -> None:
    k.train(k.trainer(label_smoothing_factor=0.1, gradient_accumulation_steps=4, num_train_epochs=3))


@case("smoothing/bert")
def _(k: Kit) -> None:
    train = Rows(text_rows(14, labels="token"))
    k.train(
        k.trainer(
            bert("BertForTokenClassification"),
            train=train,
            label_smoothing_factor=0.1,
            num_train_epochs=1,
            adam_epsilon=1e-4,
        )
    )


# Models of transformers


def transformer(name: str, build: Any, labels: str, **arguments: Any) -> None:
    def function(k: Kit) -> None:
        train, held_out = Rows(text_rows(14, labels=labels)), Rows(text_rows(9, 2, labels=labels))
        # Some gradients of these models are zero but for rounding (a key's bias, the bias of span logits). Adam with
        # its usual epsilon would make steps of the size of the learning rate from that noise.
        given = {
            "evaluation_strategy": "epoch",
            "save_strategy": "epoch",
            "weight_decay": 0.1,
            "adam_epsilon": 1e-4,
        }
        trainer = k.trainer(build(), train=train, eval=held_out, **{**given, **arguments})
        k.train(trainer)
        k.predict(trainer, Rows(text_rows(7, 5, labels=labels)))

    case(f"transformers/{name}")(function)


def without_key_bias() -> Any:
    """A BERT without the biases whose gradient is zero but for rounding, which Adafactor would divide by itself."""
    model = bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("key.bias" not in name)
    return model


transformer("bert", bert, "class")
transformer("bert-dropout", lambda: bert(dropout=0.1), "class")
transformer("bert-best", bert, "class", load_best_model_at_end=True, save_total_limit=1, learning_rate=0.1)
transformer("bert-checkpointing", lambda: bert(dropout=0.1), "class", gradient_checkpointing=True)
transformer("bert-tokens", lambda: bert("BertForTokenClassification"), "token")
transformer("bert-questions", lambda: bert("BertForQuestionAnswering"), "span")
transformer("bert-masked", lambda: bert("BertForMaskedLM"), "causal")
transformer("bert-adafactor", without_key_bias, "class", optim="adafactor")
transformer("bert-adamw-hf", bert, "class", optim="adamw_hf")
transformer("gpt2", gpt2, "causal")
transformer("gpt2-dropout", lambda: gpt2(dropout=0.1), "causal", gradient_accumulation_steps=3)
transformer("gpt2-checkpointing", lambda: gpt2(dropout=0.1), "causal", gradient_checkpointing=True)
transformer("gpt2-best-sgd", gpt2, "causal", load_best_model_at_end=True, optim="sgd", save_safetensors=True)
transformer("t5", t5, "causal")


@case("transformers/save-and-load")
def _(k: Kit) -> None:
    model = bert()
    trainer = k.trainer(
        model, train=Rows(text_rows(14)), num_train_epochs=1, save_safetensors=True, adam_epsilon=1e-4
    )
    k.train(trainer)
    trainer.save_model(str(k.folder / "final"))
    again = type(model).from_pretrained(str(k.folder / "final"))
    k.weights("again", again)


@case("transformers/base-model-is-refused")
def _(k: Kit) -> None:
    import transformers

    config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    k.train(k.trainer(transformers.BertModel(config)))


# Parameters


@case("parameters/frozen")
def _(k: Kit) -> None:
    model = Net()
    model.inner.requires_grad_(False)
    k.train(k.trainer(model, weight_decay=0.1, max_grad_norm=0.05))


@case("parameters/unused")
def _(k: Kit) -> None:
    model = Net()
    model.spare = quietly_seeded(3, lambda: nn.Linear(3, 3))
    k.train(k.trainer(model, weight_decay=0.1))


@case("parameters/tied")
def _(k: Kit) -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.twin = quietly_seeded(4, lambda: nn.Linear(6, 8))
            self.twin.weight = self.inner.weight

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(x) + self.twin(x)[:, :3]

    k.train(k.trainer(Tied(), weight_decay=0.1))


@case("parameters/names-with-bias")
def _(k: Kit) -> None:
    """Decay is decided by name: "bias" anywhere in it spares the parameter."""

    class Named(Net):
        def __init__(self) -> None:
            super().__init__()
            self.biased_layer = quietly_seeded(4, lambda: nn.Linear(3, 3))
            self.scale = nn.Parameter(torch.ones(3))
            self.sequence = nn.Sequential(nn.LayerNorm(3), nn.Identity())

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return self.sequence(self.biased_layer(super().logits(x)) * self.scale)

    trainer = k.trainer(Named(), weight_decay=0.5)
    k.note("decayed", sorted(trainer.get_decay_parameter_names(trainer.model)))
    k.train(trainer)
    k.note(
        "groups", [[len(group["params"]), group["weight_decay"]] for group in trainer.optimizer.param_groups]
    )


@case("parameters/batch-norm")
def _(k: Kit) -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            # Before the layers: the gradient of a bias before a norm is rounding alone, which Adam makes large.
            self.normed = nn.BatchNorm1d(6)

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(self.normed(x))

    k.train(
        k.trainer(Normed(), evaluation_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
    )


# model_init, optimizers that are handed in


@case("model-init/once")
def _(k: Kit) -> None:
    k.train(k.trainer(model_init=lambda: Net(dropout=0.2)))


@case("model-init/random")
def _(k: Kit) -> None:
    """The seed is set before the model is built, at construction and at every train()."""

    def build() -> Any:
        model = Net(dropout=0.2)
        nn.init.normal_(model.inner.weight)
        return model

    trainer = k.trainer(model_init=build, seed=3)
    k.weights("built", trainer.model)
    k.train(trainer)
    k.weights("first", trainer.model)
    k.train(trainer, "again")


@case("model-init/takes-a-trial")
def _(k: Kit) -> None:
    trials: list[Any] = []

    def build(trial: Any) -> Any:
        trials.append(trial)
        return Net()

    k.train(k.trainer(model_init=build))
    k.note("trials", trials)


@case("model-init/neither")
def _(k: Kit) -> None:
    k.hf.Trainer(args=k.args(), train_dataset=data(8))


@case("model-init/with-optimizers")
def _(k: Kit) -> None:
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    k.train(k.trainer(model_init=lambda: Net(), optimizers=(optimizer, None)))


@case("own-optimizer/alone")
def _(k: Kit) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    k.train(k.trainer(model, optimizers=(optimizer, None), warmup_steps=2))


@case("own-optimizer/with-scheduler")
def _(k: Kit) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    trainer = k.trainer(model, optimizers=(optimizer, scheduler))
    k.train(trainer)
    k.train(trainer, "again")


@case("own-optimizer/groups")
def _(k: Kit) -> None:
    model = Net()
    groups = [{"params": model.inner.parameters(), "lr": 0.1}, {"params": model.outer.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    k.train(k.trainer(model, optimizers=(optimizer, None), lr_scheduler_type="cosine"))


@case("own-optimizer/plateau")
def _(k: Kit) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    trainer = k.trainer(
        model,
        optimizers=(optimizer, scheduler),
        evaluation_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        num_train_epochs=3,
    )
    k.train(trainer)


@case("own-optimizer/one-cycle")
def _(k: Kit) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=20)
    k.train(k.trainer(model, optimizers=(optimizer, scheduler), gradient_accumulation_steps=2))


# Several runs of one trainer


@case("calls/train-twice")
def _(k: Kit) -> None:
    trainer = k.trainer(Net(dropout=0.2), warmup_steps=2)
    k.train(trainer)
    k.note("history", [row["step"] for row in trainer.state.log_history])
    k.train(trainer, "again")


@case("calls/train-three-times")
def _(k: Kit) -> None:
    trainer = k.trainer(num_train_epochs=1, gradient_accumulation_steps=3, save_steps=1, save_total_limit=2)
    for name in ("first", "second", "third"):
        k.train(trainer, name)


@case("calls/arguments-changed-between")
def _(k: Kit) -> None:
    trainer = k.trainer(num_train_epochs=1)
    k.train(trainer)
    trainer.args.max_steps = 9
    trainer.args.learning_rate = 0.5
    trainer.args.max_grad_norm = 0.01
    trainer.args.lr_scheduler_type = "constant"
    k.train(trainer, "again")


@case("calls/data-changed-between")
def _(k: Kit) -> None:
    trainer = k.trainer(num_train_epochs=1)
    k.train(trainer)
    trainer.train_dataset = data(9, seed=7)
    k.train(trainer, "again")


@case("calls/two-trainers-one-model")
def _(k: Kit) -> None:
    model = Net(dropout=0.2)
    k.train(k.trainer(model, num_train_epochs=1))
    k.train(k.trainer(model, num_train_epochs=1, learning_rate=0.1, optim="sgd"), "again")


@case("calls/two-trainers-at-once")
def _(k: Kit) -> None:
    first, second = k.trainer(num_train_epochs=1), k.trainer(num_train_epochs=1, seed=9)
    k.train(first, "first")
    k.train(second, "second")


@case("calls/default-arguments")
def _(k: Kit) -> None:
    import os

    here = os.getcwd()
    os.chdir(k.folder)
    try:
        trainer = k.hf.Trainer(model=Regression(), train_dataset=data(22))
        k.note("output_dir", trainer.args.output_dir)
        k.note("folder", os.path.isdir("tmp_trainer"))
    finally:
        os.chdir(here)


@case("calls/positional")
def _(k: Kit) -> None:
    """The constructor by position, as old scripts do."""
    trainer = k.hf.Trainer(Net(), k.args(), None, data(22), data(10, seed=2), None, None, accuracy)
    k.train(trainer)
    k.evaluate(trainer)
    k.weights("model", trainer.model)


@case("batch-size/found-at-once")
def _(k: Kit) -> None:
    k.train(k.trainer(auto_find_batch_size=True, per_device_train_batch_size=8))


@case("batch-size/other-errors-pass")
def _(k: Kit) -> None:
    class Failing(Net):
        def forward(self, x: Any, labels: Any = None) -> Any:
            raise RuntimeError("no memory of this")

    k.train(k.trainer(Failing(), auto_find_batch_size=True))


@case("batch-size/never-fits")
def _(k: Kit) -> None:
    class Failing(Net):
        def forward(self, x: Any, labels: Any = None) -> Any:
            raise RuntimeError("CUDA out of memory. Tried to allocate everything")

    k.train(k.trainer(Failing(), auto_find_batch_size=True))
