"""Collators and the dropping of columns."""

import dataclasses
import logging
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drivetrain import Trainer, TrainingArguments
from drivetrain.data import (
    DataCollatorWithPadding,
    RemoveColumnsCollator,
    default_data_collator,
    signature_columns,
)
from drivetrain.errors import ConfigurationError


class Model(torch.nn.Module):
    def forward(self, x, labels=None):
        return x


def test_numbers_lists_arrays_and_tensors_are_stacked():
    rows = [
        {
            "t": torch.tensor([1.0, i]),
            "a": np.array([i, 2]),
            "l": [1, i],
            "f": 0.5 * i,
            "n": None,
            "s": "text",
        }
        for i in range(3)
    ]
    batch = default_data_collator(rows)
    assert list(batch) == ["t", "a", "l", "f"]
    assert batch["t"].tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
    assert batch["a"].dtype == torch.int64
    assert batch["l"].tolist() == [[1, 0], [1, 1], [1, 2]]
    assert batch["f"].dtype == torch.float32


@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        (3, torch.int64),
        (True, torch.int64),
        (0.5, torch.float32),
        (np.int32(3), torch.int64),
        (np.float64(3), torch.float32),
        (torch.tensor(3), torch.int64),
        (torch.tensor(0.5), torch.float32),
        (np.array(2), torch.int64),
    ],
)
def test_label_becomes_labels(label, dtype):
    batch = default_data_collator([{"label": label}, {"label": label}])
    assert list(batch) == ["labels"]
    assert batch["labels"].dtype == dtype
    assert batch["labels"].shape == (2,)


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        ([1, 2], torch.int64),
        ([0.5, 2], torch.float32),
        (torch.tensor([1, 2]), torch.int64),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.float64),
        (np.array([1, 2], dtype=np.int32), torch.int64),
        (np.array([1.0, 2.0]), torch.float32),
    ],
)
def test_label_ids_become_labels(ids, dtype):
    batch = default_data_collator([{"label_ids": ids}, {"label_ids": ids}])
    assert batch["labels"].dtype == dtype
    assert batch["labels"].shape == (2, 2)


def test_label_goes_before_label_ids_and_labels_stay():
    assert default_data_collator([{"label": 1, "label_ids": [7]}])["labels"].tolist() == [1]
    assert default_data_collator([{"labels": 4}])["labels"].tolist() == [4]
    assert default_data_collator([{"label": None, "label_ids": [7]}])["labels"].tolist() == [[7]]


def test_rows_may_be_mappings_dataclasses_and_objects():
    @dataclasses.dataclass(slots=True)
    class Row:
        x: int
        label: int

    for row in (Row(1, 2), UserDict(x=1, label=2), SimpleNamespace(x=1, label=2)):
        batch = default_data_collator([row, row])
        assert batch["x"].tolist() == [1, 1]
        assert batch["labels"].tolist() == [2, 2]


def test_tuples_and_tensors_go_to_torch():
    x, y = default_data_collator([(torch.ones(2), 1), (torch.zeros(2), 2)])
    assert x.shape == (2, 2)
    assert y.tolist() == [1, 2]
    assert default_data_collator([torch.ones(2)] * 3).shape == (3, 2)


def test_what_cannot_be_stacked_names_column_and_cure():
    with pytest.raises(ConfigurationError, match=r"column 'ids'.*data_collator that pads"):
        default_data_collator([{"ids": [1, 2]}, {"ids": [1]}])
    with pytest.raises(ConfigurationError, match="column 'label_ids'"):
        default_data_collator([{"label_ids": [1, 2]}, {"label_ids": [1]}])


def test_padding_is_the_tokenizers():
    class Tokenizer:
        def pad(self, features, **options):
            self.options = options
            width = max(len(row["input_ids"]) for row in features)
            padded = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in features]
            return {
                "input_ids": torch.tensor(padded),
                "label": torch.tensor([row["label"] for row in features]),
            }

    tokenizer = Tokenizer()
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    batch = collate([{"input_ids": [1], "label": 0}, {"input_ids": [1, 2], "label": 1}])
    assert batch["input_ids"].tolist() == [[1, 0], [1, 2]]
    assert batch["labels"].tolist() == [0, 1]
    assert "label" not in batch
    assert tokenizer.options == {
        "padding": True, "max_length": None, "pad_to_multiple_of": 8, "return_tensors": "pt",
    }  # fmt: skip


def test_dropped_columns_are_named_once(caplog):
    collate = RemoveColumnsCollator(
        default_data_collator, ["x", "label"], model_name="Net", description="training"
    )
    with caplog.at_level(logging.INFO, "drivetrain"):
        for _ in range(2):
            assert list(collate([{"x": 1, "b": 2, "a": 3, "label": 0}])) == ["labels", "x"]
    assert [record.getMessage() for record in caplog.records] == [
        "Columns of the training set that Net.forward does not take are dropped: a, b."
    ]


def test_another_collator_is_given_rows_without_the_columns():
    rows = [{"x": 1, "b": 2}, {"x": 3}]
    given = RemoveColumnsCollator(list, ["x"])(rows)
    assert given == [{"x": 1}, {"x": 3}]
    assert rows[0] == {"x": 1, "b": 2}
    assert RemoveColumnsCollator(list, ["x"])([(1, 2)]) == [(1, 2)]


def test_nothing_left_is_an_error_with_a_cure():
    with pytest.raises(ConfigurationError, match=r"of the training set .* remove_unused_columns=False"):
        RemoveColumnsCollator(default_data_collator, ["x", "label"])([{"a": 1, "label": 0}])


def test_columns_of_a_dataset_are_dropped(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": [1.0, 2.0], "text": ["a", "b"], "label": [0, 1]})

    def loader(data, **arguments):
        args = TrainingArguments(str(tmp_path), report_to="none", **arguments)
        return Trainer(Model(), args, data_collator=list, train_dataset=data).get_train_dataloader()

    assert loader(data).dataset.column_names == ["x", "label"]
    assert loader(data).collate_fn is list
    assert loader(data, remove_unused_columns=False).dataset is data
    with pytest.raises(ConfigurationError, match=r"Model\.forward"):
        loader(data.remove_columns("x"))


def test_the_signature_comes_first_then_labels():
    assert signature_columns(Model(), ["labels", "y"]) == ["x", "labels", "label", "label_ids", "y"]


def test_a_whole_batch_is_the_collators():
    """`__getitems__` of a dataset may give a batch that is collated already: no rows to look into."""
    collate = RemoveColumnsCollator(lambda batch: batch, ["x"])
    assert collate({"x": torch.ones(2), "y": torch.zeros(2)}).keys() == {"x", "y"}


def test_rows_that_could_not_be_read_reach_the_collator():
    seen = []
    collate = RemoveColumnsCollator(lambda rows: seen.extend(rows), ["x"], labels=["y"])
    collate([{"x": 1}, None, {"x": 2, "z": 3}, (4, 5)])
    assert seen == [{"x": 1}, None, {"x": 2}, (4, 5)]
