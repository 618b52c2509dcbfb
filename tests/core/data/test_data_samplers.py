"""Orders of rows."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from drivetrain.data import (
    LengthGroupedSampler,
    SeededRandomSampler,
    eval_sampler,
    has_length,
    make_dataloader,
    train_sampler,
)
from drivetrain.errors import ConfigurationError

# Rows, batch size, seed; the order and the number drawn next, as transformers 4.34.0 gives them.
GROUPED = [
    (13, 2, 0, [5, 4, 0, 2, 11, 8, 3, 12, 6, 10, 1, 9, 7], 756),
    (30, 3, 1, [16, 23, 18, 25, 8, 4, 5, 17, 12, 19, 14, 20, 22, 13, 3, 9, 15, 27, 11, 29, 7, 24, 2, 10, 6, 28, 0,
                1, 26, 21], 254),
    (5, 8, 2, [0, 1, 2, 3, 4], 358),
    (1, 1, 3, [0], 986),
    (40, 4, 4, [33, 25, 31, 3, 26, 4, 21, 10, 5, 6, 12, 19, 8, 32, 38, 27, 17, 39, 22, 0, 7, 13, 30, 9, 16, 11, 34,
                29, 1, 2, 37, 20, 28, 23, 18, 35, 24, 36, 14, 15], 214),
]  # fmt: skip


class Endless(IterableDataset):
    def __iter__(self):
        return iter(int, 1)


def arguments(**changes):
    values = {
        "group_by_length": False,
        "length_column_name": "length",
        "data_seed": None,
        "train_batch_size": 2,
        "world_size": 1,
        "gradient_accumulation_steps": 1,
        "dataloader_drop_last": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": True,
    }
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize(("rows", "batch_size", "seed", "order", "following"), GROUPED)
def test_length_groups_are_those_of_the_reference(rows, batch_size, seed, order, following):
    lengths = [(i * 7919 + 13) % 17 + 1 for i in range(rows)]
    torch.manual_seed(seed)
    assert list(LengthGroupedSampler(batch_size, lengths=lengths)) == order
    assert torch.randint(1000, (1,)).item() == following


def test_lengths_are_found():
    rows = [{"ids": [0] * n} for n in (3, 1, 2)]
    assert LengthGroupedSampler(1, rows, model_input_name="ids").lengths == [3, 1, 2]
    assert LengthGroupedSampler(1, lengths=torch.tensor([2, 1])).lengths == [2, 1]
    with pytest.raises(ConfigurationError, match="no column 'input_ids'"):
        LengthGroupedSampler(1, rows)
    with pytest.raises(ConfigurationError, match="a dataset or lengths"):
        LengthGroupedSampler(1)


def test_the_column_of_lengths_is_used():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"n": [3, 1, 2], "input_ids": [[1], [1], [1]]})
    sampler = train_sampler(data, arguments(group_by_length=True, length_column_name="n", world_size=3))
    assert sampler.lengths == [3, 1, 2]
    assert sampler.batch_size == 6
    tokenizer = SimpleNamespace(model_input_names=["input_ids"])
    assert train_sampler(data, arguments(group_by_length=True), tokenizer).lengths == [1, 1, 1]


def test_the_column_of_lengths_may_be_one_of_rows_that_are_dicts():
    rows = [{"n": n, "input_ids": [1]} for n in (3, 1, 2)]
    named = arguments(group_by_length=True, length_column_name="n")
    assert train_sampler(rows, named).lengths == [3, 1, 2]
    assert train_sampler(rows, arguments(group_by_length=True)).lengths == [1, 1, 1]
    with pytest.raises(ConfigurationError) as caught:
        train_sampler([{"input_ids": [1]}], named)
    assert str(caught.value) == (
        "length_column_name='n' is no column of the training rows: they have input_ids. Name one of lengths, or leave it"
        " out, and lengths are measured."
    )


def test_the_arguments_choose_the_sampler():
    assert type(train_sampler([1, 2], arguments())) is RandomSampler
    assert type(train_sampler([1, 2], arguments(data_seed=1))) is SeededRandomSampler
    assert type(eval_sampler([1, 2])) is SequentialSampler
    assert train_sampler(Endless(), arguments()) is None
    assert eval_sampler(Endless()) is None
    with pytest.raises(ConfigurationError, match="empty"):
        train_sampler([], arguments())


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: SeededRandomSampler(range(50), seed),
        lambda seed: LengthGroupedSampler(2, lengths=list(range(50)), seed=seed),
    ],
)
def test_a_data_seed_alone_decides(make):
    sampler, other = make(3), make(4)
    before = torch.get_rng_state()
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        torch.rand(1)
        assert list(sampler) == orders[-1]
    torch.set_rng_state(before)
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert orders[0] != orders[1]
    assert list(other) != orders[0]
    assert sorted(orders[1]) == list(range(50))


def test_has_length():
    class Unsure:
        def __len__(self):
            raise TypeError("unknown")

    assert has_length([])
    assert not has_length(Unsure())
    assert not has_length(Endless())


def test_loaders_are_plain_and_as_asked():
    loader = make_dataloader(
        [1, 2, 3], batch_size=2, collate_fn=list, sampler=SequentialSampler([1, 2, 3]),
        args=arguments(dataloader_drop_last=True), train=True,
    )  # fmt: skip
    assert type(loader) is DataLoader
    assert list(loader) == [[1, 2]]
    streamed = make_dataloader(
        Endless(),
        batch_size=2,
        collate_fn=list,
        sampler=None,
        args=arguments(dataloader_drop_last=True),
        train=True,
    )
    assert not streamed.drop_last

    class Shapeless:
        pass

    with pytest.raises(ConfigurationError, match="A Shapeless has no length"):
        make_dataloader(
            Shapeless(), batch_size=2, collate_fn=list, sampler=None, args=arguments(), train=True
        )
