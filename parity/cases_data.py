"""Where rows come from and how they become batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fixtures import (
    Keywords,
    Net,
    Rows,
    Stream,
    bert,
    data,
    noisy,
    pad_tokens,
    rows,
    text_rows,
    tokenizer,
)
from kit import Kit, case

# "fetched" is the order in which rows were asked for. The reference has one batch of lookahead whatever is fetched,
# ours only where fetching draws random numbers: what was fetched and never trained on is left out.


@case("data/order")
def _(k: Kit) -> None:
    train, held_out = data(22), data(10, seed=2)
    k.train(k.trainer(train=train, eval=held_out, max_steps=9, evaluation_strategy="steps", eval_steps=4))
    k.note("fetched", train.fetched[: 22 + 3 * 4])
    k.note("evaluated", held_out.fetched)


@case("data/order-drop-last")
def _(k: Kit) -> None:
    train = data(22)
    k.train(k.trainer(train=train, dataloader_drop_last=True))
    k.note("fetched", train.fetched)


@case("data/random-collator")
def _(k: Kit) -> None:
    k.train(k.trainer(Net(dropout=0.3), data_collator=noisy, evaluation_strategy="steps", eval_steps=4))


@case("data/random-collator-stops-early")
def _(k: Kit) -> None:
    trainer = k.trainer(Net(dropout=0.3), data_collator=noisy, max_steps=4)
    k.train(trainer)
    k.train(trainer, "again")


@case("data/random-rows")
def _(k: Kit) -> None:
    class Augmented(Rows):
        def __getitem__(self, index: int) -> Any:
            row = super().__getitem__(index)
            return {**row, "x": row["x"] + torch.randn(6) * 0.1 + float(np.random.normal())}

    k.train(k.trainer(Net(dropout=0.2), train=Augmented(rows(22)), gradient_accumulation_steps=4))


@case("data/random-stream")
def _(k: Kit) -> None:
    class Shuffled(Stream):
        def __iter__(self) -> Any:
            return iter([self.rows[i] for i in torch.randperm(len(self.rows)).tolist()])

    k.train(k.trainer(Net(dropout=0.2), train=Shuffled(rows(14)), data_collator=noisy, max_steps=9))


@case("data/worker")
def _(k: Kit) -> None:
    k.train(k.trainer(dataloader_num_workers=1, num_train_epochs=1, evaluation_strategy="epoch"))


@case("data/worker-random-collator")
def _(k: Kit) -> None:
    trainer = k.trainer(Net(dropout=0.3), data_collator=noisy, dataloader_num_workers=1, num_train_epochs=1)
    k.train(trainer)


@case("data/not-pinned")
def _(k: Kit) -> None:
    k.train(k.trainer(dataloader_pin_memory=False, num_train_epochs=1))


@case("data/extra-columns")
def _(k: Kit) -> None:
    extra = data(22, name="a row", weight=2.0, idx=7)
    k.train(k.trainer(train=extra, eval=data(10, seed=2, name="another"), evaluation_strategy="epoch"))


@case("data/extra-columns-kept")
def _(k: Kit) -> None:
    train = Rows([{**row, "factor": 1.0 + i % 2} for i, row in enumerate(rows(22))])
    k.train(k.trainer(Keywords(), train=train, remove_unused_columns=False, num_train_epochs=1))


@case("data/extra-columns-kept-by-mistake")
def _(k: Kit) -> None:
    k.train(k.trainer(train=data(22, weight=2.0), remove_unused_columns=False))


@case("data/keyword-model-loses-its-columns")
def _(k: Kit) -> None:
    train = Rows([{**row, "factor": 1.0} for row in rows(22)])
    k.train(k.trainer(Keywords(), train=train))


@case("data/label")
def _(k: Kit) -> None:
    train = Rows([{"x": row["x"], "label": row["labels"]} for row in rows(22)])
    k.train(k.trainer(train=train, num_train_epochs=1))


@case("data/label-tensor")
def _(k: Kit) -> None:
    train = Rows([{"x": row["x"], "label": torch.tensor(row["labels"])} for row in rows(22)])
    k.train(k.trainer(train=train, num_train_epochs=1))


@case("data/label-ids")
def _(k: Kit) -> None:
    labels = [{"x": row["x"].repeat(2, 1), "label_ids": [row["labels"]] * 2} for row in rows(22)]

    class Flat(Net):
        def forward(self, x: Any, labels: Any = None) -> Any:
            return super().forward(x.flatten(0, 1), labels.flatten())

    k.train(k.trainer(Flat(), train=Rows(labels), num_train_epochs=1))


@case("data/numpy-and-lists")
def _(k: Kit) -> None:
    train = Rows([{"x": row["x"].numpy(), "labels": np.int64(row["labels"])} for row in rows(22)])
    held_out = Rows([{"x": row["x"].tolist(), "labels": row["labels"]} for row in rows(10, 2)])
    k.train(k.trainer(train=train, eval=held_out, evaluation_strategy="epoch", num_train_epochs=1))


@case("data/objects")
def _(k: Kit) -> None:
    class Row:
        def __init__(self, row: dict[str, Any]) -> None:
            self.x, self.label = row["x"], row["labels"]

    k.train(k.trainer(train=Rows([Row(row) for row in rows(22)]), num_train_epochs=1))


@case("data/tuples-with-a-collator")
def _(k: Kit) -> None:
    def collate(batch: list[Any]) -> dict[str, Any]:
        x, labels = zip(*batch, strict=True)
        return {"x": torch.stack(x), "labels": torch.tensor(labels)}

    train = torch.utils.data.TensorDataset(
        torch.stack([row["x"] for row in rows(22)]), torch.tensor([row["labels"] for row in rows(22)])
    )
    k.train(k.trainer(train=train, data_collator=collate, num_train_epochs=1))


@case("data/plain-list")
def _(k: Kit) -> None:
    k.train(k.trainer(train=rows(22), eval=rows(10, 2), evaluation_strategy="epoch", num_train_epochs=1))


@case("data/empty-batch-is-an-error")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Rows([{"other": 1.0} for _ in range(8)])))


@case("data/none")
def _(k: Kit) -> None:
    trainer = k.trainer()
    trainer.train_dataset = None
    k.train(trainer)


@case("data/no-rows")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Rows([])))


@case("data/hugging-face")
def _(k: Kit) -> None:
    import datasets

    def build(count: int, seed: int) -> Any:
        table = rows(count, seed)
        return datasets.Dataset.from_dict(
            {
                "x": [row["x"].tolist() for row in table],
                "label": [row["labels"] for row in table],
                "text": ["words"] * count,
            }
        )

    trainer = k.trainer(train=build(22, 1), eval=build(10, 2), evaluation_strategy="epoch")
    k.train(trainer)
    k.predict(trainer, build(9, 5))
    k.predict(trainer, build(9, 5).remove_columns("label"), name="unlabelled")


@case("data/hugging-face-torch-format")
def _(k: Kit) -> None:
    import datasets

    table = rows(22)
    columns = {
        "x": [row["x"].tolist() for row in table],
        "labels": [row["labels"] for row in table],
        "n": [1] * 22,
    }
    train = datasets.Dataset.from_dict(columns).with_format("torch")
    k.train(k.trainer(train=train, num_train_epochs=1))


@case("data/hugging-face-stream")
def _(k: Kit) -> None:
    import datasets

    table = rows(22)
    columns = {"x": [row["x"].tolist() for row in table], "labels": [row["labels"] for row in table]}
    train = datasets.Dataset.from_dict(columns).to_iterable_dataset()
    k.train(k.trainer(train=train, max_steps=8))


@case("data/tokenizer-pads")
def _(k: Kit) -> None:
    trainer = k.trainer(
        bert(),
        train=Rows(text_rows(18, lengths=(2, 9))),
        eval=Rows(text_rows(10, 2, lengths=(2, 9))),
        tokenizer=tokenizer(),
        evaluation_strategy="epoch",
        save_strategy="epoch",
        adam_epsilon=1e-4,
    )
    k.train(trainer)
    k.predict(trainer, Rows(text_rows(7, 5, lengths=(2, 9))))


# Batches of like lengths


def grouped(name: str, count: int, **arguments: Any) -> None:
    def function(k: Kit) -> None:
        train = Rows(text_rows(count, lengths=(1, 12)))
        given = {"tokenizer": tokenizer(), "num_train_epochs": 2, "adam_epsilon": 1e-4}
        k.train(k.trainer(bert(), train=train, group_by_length=True, **{**given, **arguments}))
        k.note("fetched", train.fetched[-2 * count :])  # the first are looked at for their lengths

    case(name)(function)


grouped("group-by-length/tokenizer", 37)
grouped("group-by-length/many", 150, per_device_train_batch_size=8)
grouped("group-by-length/accumulated", 37, gradient_accumulation_steps=2, num_train_epochs=3)


@case("group-by-length/dropout")
def _(k: Kit) -> None:
    train = Rows(text_rows(37, lengths=(1, 12)))
    k.train(
        k.trainer(
            bert(dropout=0.1), train=train, tokenizer=tokenizer(), group_by_length=True, adam_epsilon=1e-4
        )
    )


@case("group-by-length/length-column")
def _(k: Kit) -> None:
    import datasets

    table = text_rows(37, lengths=(1, 12))
    columns: dict[str, Any] = {key: [row[key] for row in table] for key in table[0]}
    columns["size"] = [len(row["input_ids"]) * (-1) ** i for i, row in enumerate(table)]
    trainer = k.trainer(
        bert(),
        train=datasets.Dataset.from_dict(columns),
        tokenizer=tokenizer(),
        group_by_length=True,
        length_column_name="size",
        adam_epsilon=1e-4,
    )
    k.train(trainer)


@case("group-by-length/no-ids")
def _(k: Kit) -> None:
    k.train(k.trainer(group_by_length=True))


@case("group-by-length/stream")
def _(k: Kit) -> None:
    k.train(k.trainer(train=Stream(text_rows(9)), group_by_length=True, max_steps=3))


@case("group-by-length/without-tokenizer")
def _(k: Kit) -> None:
    train = Rows(text_rows(20, lengths=(3, 9), labels="token"))
    k.train(
        k.trainer(
            bert("BertForTokenClassification"),
            train=train,
            data_collator=pad_tokens,
            group_by_length=True,
            adam_epsilon=1e-4,
        )
    )
    k.note("fetched", train.fetched[-2 * 20 :])
