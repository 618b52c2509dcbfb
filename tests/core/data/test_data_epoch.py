"""One pass over a loader: torch's own order and draws, and exact resumption from every place."""

import functools
import json
import operator
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from drivetrain.data import EpochIterator, LengthGroupedSampler, SeededRandomSampler, batches_of, seed_worker
from drivetrain.data.randomness import capture, restore
from drivetrain.errors import ConfigurationError

ONE = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
ARGS = SimpleNamespace(ignore_data_skip=False)
ROWS = 23


def epoch_of(loader, epoch=0, position=None, args=ARGS):
    return EpochIterator(loader, args=args, processes=ONE, epoch=epoch, position=position)


def seed_all(seed=7):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def ahead(loader):
    """The batches of a loader, each fetched before the one ahead of it is given out, as accelerate 0.23 does."""
    iterator = iter(loader)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current
        current = following


class Twice:
    """A dataset that is asked for many rows at once."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        raise AssertionError("asked for one row")

    def __getitems__(self, indices):
        return [2 * index for index in indices]


class Stream(IterableDataset):
    """Rows in a random order that is drawn when the iterator is made; remembers how many were read."""

    def __init__(self, rows=ROWS, noise=False):
        self.rows, self.noise, self.read = rows, noise, 0

    def __iter__(self):
        return self.rows_in(torch.randperm(self.rows).tolist())

    def rows_in(self, order):
        for row in order:
            self.read += 1
            yield (row, torch.rand(1).item()) if self.noise else row


class Stateful(Stream):
    """Says where it is, and goes on from there."""

    place = 0

    def __iter__(self):
        order = torch.randperm(self.rows).tolist()
        start, self.place = self.place, 0
        return self.tracked(order, start)

    def tracked(self, order, start):
        self.at = start
        for row in self.rows_in(order[start:]):
            self.at += 1
            yield row
        self.at = 0

    def state_dict(self):
        return {"place": self.at}

    def load_state_dict(self, state):
        self.place = state["place"]


class Lazy(Sampler):
    """Has no length, and draws row by row from a generator of its own."""

    def __init__(self):
        pass

    def __iter__(self):
        generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        for _ in range(ROWS):
            yield int(torch.randint(ROWS, (1,), generator=generator))


class NowAndThen:
    """A dataset of which some rows are noisy."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return index, torch.rand(1).item() if index % 7 == 0 else 0.0


class Buckets(Sampler):
    """Batches of unequal size, shuffled by Python's generator."""

    def __iter__(self):
        batches = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]]
        random.shuffle(batches)
        return iter(batches)

    def __len__(self):
        return 5


class Own(DataLoader):
    """Iterates in its own way."""

    def __iter__(self):
        for batch in super().__iter__():
            yield [-row for row in batch]


def noisy(rows):
    """A collator that draws of all three generators."""
    return [list(rows), torch.rand(1).item(), np.random.randn(), random.random()]


DATA = list(range(ROWS))


class Noisy:
    """A dataset whose rows are noisy."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return index, torch.rand(1).item()


def generator():
    return torch.Generator().manual_seed(5)


LOADERS = {
    "shuffled": lambda: DataLoader(DATA, 4, shuffle=True, collate_fn=list),
    "in order": lambda: DataLoader(DATA, 4, collate_fn=list),
    "drop_last": lambda: DataLoader(DATA, 4, shuffle=True, drop_last=True, collate_fn=list),
    "many at once": lambda: DataLoader(Twice(), 4, shuffle=True, collate_fn=list),
    "torch's collator": lambda: DataLoader([{"x": i} for i in DATA], 4, shuffle=True),
    "own generator": lambda: DataLoader(DATA, 4, shuffle=True, generator=generator(), collate_fn=list),
    "loader's generator": lambda: DataLoader(
        DATA, 4, sampler=RandomSampler(DATA), generator=generator(), collate_fn=list
    ),
    "with replacement": lambda: DataLoader(
        DATA, 4, sampler=RandomSampler(DATA, replacement=True, num_samples=40), collate_fn=list
    ),
    "weighted": lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * ROWS, 30), collate_fn=list),
    "by length": lambda: DataLoader(DATA, 4, sampler=LengthGroupedSampler(4, lengths=DATA), collate_fn=list),
    "lazy sampler": lambda: DataLoader(DATA, 4, sampler=Lazy(), collate_fn=list),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=Buckets(), collate_fn=list),
    "plain batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, True), collate_fn=list
    ),
    "no batches": lambda: DataLoader(
        DATA, batch_size=None, sampler=RandomSampler(DATA), collate_fn=lambda row: torch.tensor([row])
    ),
    "noisy collator": lambda: DataLoader(DATA, 4, shuffle=True, collate_fn=noisy),
    "noisy rows": lambda: DataLoader(Noisy(), 4, shuffle=True, collate_fn=list),
    "rows noisy now and then": lambda: DataLoader(NowAndThen(), 4, shuffle=True, collate_fn=list),
    "stream": lambda: DataLoader(Stream(), 4, collate_fn=list),
    "stream, drop_last": lambda: DataLoader(Stream(), 4, drop_last=True, collate_fn=list),
    "stream, no batches": lambda: DataLoader(Stream(), None, collate_fn=lambda row: row),
    "noisy stream": lambda: DataLoader(Stream(noise=True), 4, collate_fn=list),
    "stateful stream": lambda: DataLoader(Stateful(), 4, collate_fn=list),
    "noisy stateful stream": lambda: DataLoader(Stateful(noise=True), 4, collate_fn=list),
    "own kind": lambda: Own(DATA, 4, shuffle=True, collate_fn=list),
    "noisy own kind": lambda: Own(Noisy(), 4, shuffle=True, collate_fn=lambda rows: torch.tensor(rows)),
    "list of batches": lambda: [[1, 2], [3], [4, 5]],
}
REREADS = {name for name in LOADERS if "own kind" in name or name == "list of batches"} | {
    "stream", "stream, drop_last", "stream, no batches", "noisy stream",
}  # fmt: skip
# A loader that the Trainer made fetches ahead; one of the user's own does not.
OURS = {
    f"{name}, made by the Trainer": name
    for name in LOADERS
    if "own kind" not in name and name != "list of batches"
}
REREADS |= {name for name, plain_name in OURS.items() if plain_name in REREADS}
loaders = pytest.mark.parametrize("name", [*LOADERS, *OURS])


def build(name):
    loader = LOADERS[OURS.get(name, name)]()
    if name in OURS:
        loader.fetches_ahead = True
    return loader


def plain(value):
    """Something that `==` compares."""
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf, value
    )


def model_draws():
    """What a step of a model draws: dropout, and perhaps more."""
    return torch.rand(1).item(), np.random.rand(), random.random()


@loaders
def test_batches_and_draws_are_those_of_torch(name):
    seed_all()
    loader, expected = build(name), []
    for _ in range(2):
        batches = ahead(loader) if name in OURS else loader
        expected += [(plain(batch), model_draws()) for batch in batches]
    after = torch.rand(1)
    seed_all()
    loader, got = build(name), []
    for epoch in range(2):
        iterator = epoch_of(loader, epoch)
        for batch in iterator:
            assert iterator.weight == 1.0
            got.append((plain(batch), model_draws()))
        if batches_of(loader, 1) is not None:
            assert iterator.index == iterator.batches == batches_of(loader, 1)
    assert got == expected
    assert torch.equal(torch.rand(1), after)


@loaders
def test_a_resume_goes_on_exactly_from_everywhere(name, caplog):
    """Two epochs, stopped after each batch of the second; then a new loader goes on from the checkpoint."""
    seed_all()
    loader = build(name)
    for _ in epoch_of(loader):
        model_draws()
    seen, saved = [], []
    iterator = epoch_of(loader, 1)
    assert iterator.position() == {}
    for batch in iterator:
        seen.append((plain(batch), model_draws()))
        saved.append((json.dumps(iterator.position()), capture(), len(seen)))
    after = model_draws()
    following = [plain(batch) for batch in epoch_of(loader, 2)]

    for text, state, number in saved:
        fresh = build(name)
        seed_all(99)
        caplog.clear()
        resumed = epoch_of(fresh, 1, json.loads(text))
        assert resumed.index == number
        assert resumed.position() == json.loads(text)
        restore(state)
        rest = [(plain(batch), model_draws()) for batch in resumed]
        assert rest == seen[number:], number
        assert model_draws() == after
        assert [plain(batch) for batch in epoch_of(fresh, 2)] == following
        assert any("again" in record.message for record in caplog.records) == (
            name in REREADS and "ended" not in json.loads(text)
        )


@pytest.mark.parametrize("name", [name for name in (*LOADERS, *OURS) if name not in REREADS])
def test_a_second_resume_goes_on_exactly_as_well(name):
    seed_all()
    loader = build(name)
    iterator, batches = epoch_of(loader), []
    for batch in iterator:
        batches.append(plain(batch))
        if len(batches) == 2:
            text, state = json.dumps(iterator.position()), capture()
    resumed = epoch_of(build(name), 0, json.loads(text))
    restore(state)
    assert plain(next(resumed)) == batches[2]
    text, state = json.dumps(resumed.position()), capture()
    again = epoch_of(build(name), 0, json.loads(text))
    restore(state)
    assert [plain(batch) for batch in again] == batches[3:]


def test_nothing_that_was_seen_is_loaded_again():
    class Counting(list):
        loaded = 0

        def __getitem__(self, index):
            self.loaded += 1
            return super().__getitem__(index)

    data = Counting(DATA)
    first = epoch_of(DataLoader(data, 4, shuffle=True, collate_fn=list))
    next(first), next(first)
    position = first.position()
    data.loaded = 0
    rest = list(epoch_of(DataLoader(data, 4, shuffle=True, collate_fn=list), 0, position))
    assert data.loaded == sum(len(batch) for batch in rest) == ROWS - 8


def test_a_stream_with_a_state_is_not_read_again():
    stream = Stateful()
    iterator = epoch_of(DataLoader(stream, 4, collate_fn=list))
    next(iterator), next(iterator)
    position = iterator.position()
    fresh = Stateful()
    assert len(list(epoch_of(DataLoader(fresh, 4, collate_fn=list), 0, position))) == 4
    assert fresh.read == ROWS - 8


def test_a_state_that_a_checkpoint_does_not_hold_is_said(caplog):
    class Odd(Stateful):
        def state_dict(self):
            return {"place": object()}

    seed_all()
    iterator = epoch_of(DataLoader(Odd(), 4, collate_fn=list))
    first = [next(iterator), next(iterator)]
    position = iterator.position()
    assert "dataset" not in position
    assert "state_dict() of Odd is not made of numbers" in caplog.text
    rest = list(iterator)
    fresh = epoch_of(DataLoader(Odd(), 4, collate_fn=list), 0, position)
    assert list(fresh) == rest
    assert len(first) == 2


@pytest.mark.parametrize("size", [2, 3, 8, 30])
def test_another_batch_size_goes_on_with_the_rows_that_remain(size):
    seed_all()
    first = epoch_of(DataLoader(DATA, 4, shuffle=True, collate_fn=list))
    seen = next(first) + next(first)
    other = epoch_of(DataLoader(DATA, size, shuffle=True, collate_fn=list), 0, first.position())
    start = other.index
    rest = list(other)
    assert sorted(seen + functools.reduce(operator.iadd, rest, [])) == DATA
    assert start + len(rest) == other.index == other.batches


def test_ignore_data_skip_begins_the_epoch_anew():
    first = epoch_of(DataLoader(DATA, 4, collate_fn=list))
    next(first)
    again = epoch_of(
        DataLoader(DATA, 4, collate_fn=list), 0, first.position(), SimpleNamespace(ignore_data_skip=True)
    )
    assert again.index == 0
    assert len(list(again)) == 6


def test_data_seed_orders_by_epoch():
    loader = DataLoader(DATA, 4, sampler=SeededRandomSampler(DATA, 3), collate_fn=list)
    seed_all(1)
    epochs = [functools.reduce(operator.iadd, epoch_of(loader, epoch), []) for epoch in range(3)]
    seed_all(2)
    assert [functools.reduce(operator.iadd, epoch_of(loader, epoch), []) for epoch in range(3)] == epochs
    assert len({tuple(rows) for rows in epochs}) == 3


def test_rows_are_counted():
    iterator = epoch_of(DataLoader(DATA, 4, collate_fn=list))
    assert [(iterator.rows, iterator.index) for _ in iterator] == [(4, i) for i in range(1, 6)] + [(3, 6)]


def test_an_empty_epoch_says_why():
    with pytest.raises(ConfigurationError, match="23 rows, which fill no batch"):
        epoch_of(DataLoader(DATA, 50, drop_last=True))
    with pytest.raises(ConfigurationError, match="empty"):
        epoch_of(DataLoader([], 2))


def test_an_error_of_the_dataset_comes_through_and_the_iterator_ends():
    class Broken(list):
        def __getitem__(self, index):
            raise KeyError("row 3 is broken")

    with pytest.raises(KeyError, match="row 3"):
        next(epoch_of(DataLoader(Broken(DATA), 4)))


def test_set_epoch_is_told_once_to_everything():
    class Told(SequentialSampler):
        epochs = ()

        def set_epoch(self, epoch):
            self.epochs += (epoch,)

    sampler = Told(DATA)
    loader = DataLoader(DATA, 4, sampler=sampler, collate_fn=list)
    for epoch in (0, 1):
        list(epoch_of(loader, epoch))
    assert sampler.epochs == (0, 1)


class Seeds(torch.utils.data.Dataset):
    """Rows with what the worker's generators give."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index, torch.rand(1).item(), random.random(), np.random.rand()


class WorkerStream(IterableDataset):
    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        return iter([(row, torch.rand(1).item()) for row in range(info.id, 10, info.num_workers)])


def listed(rows):
    return list(rows)


@pytest.mark.parametrize("data", [Seeds(), WorkerStream()])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_read_what_torchs_workers_read(data, persistent):
    def loader():
        return DataLoader(
            data, 2, shuffle=isinstance(data, Seeds) or None, num_workers=2, collate_fn=listed,
            worker_init_fn=seed_worker, persistent_workers=persistent,
        )  # fmt: skip

    seed_all()
    own = loader()
    expected = [list(own), list(own)]
    seed_all()
    mine = loader()
    assert list(epoch_of(mine)) == expected[0]
    assert list(epoch_of(mine, 1)) == expected[1]
    iterator = epoch_of(mine, 2)
    first = [next(iterator), next(iterator), next(iterator)]
    position = json.loads(json.dumps(iterator.position()))
    rest = list(iterator)
    seed_all(99)
    assert list(epoch_of(loader(), 2, position)) == rest
    assert len(first) == 3
