"""Where workers go on: what is read again, what is said, and that batch one million is as near as batch one."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from drivetrain.data import EpochIterator, LengthGroupedSampler, seed_worker
from drivetrain.data.reading import STATE_BYTES_A_BATCH

ONE = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
ARGS = SimpleNamespace(ignore_data_skip=False)


def epoch_of(loader, position=None, epoch=0):
    return EpochIterator(loader, args=ARGS, processes=ONE, epoch=epoch, position=position)


def taken(iterator, number):
    return [next(iterator) for _ in range(number)]


def counter():
    return torch.zeros(1, dtype=torch.int64).share_memory_()


class Noisy(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index, torch.rand(1).item(), np.random.rand(), random.random()


class Stream(IterableDataset):
    """Every worker reads twenty rows of its own, and counts them."""

    def __init__(self, ballast=0, odd=False):
        self.at, self.ballast, self.odd, self.read, self.asked = 0, ballast, odd, counter(), counter()

    def __iter__(self):
        while self.at < 20:
            self.at += 1
            self.read += 1
            yield self.at, torch.rand(1).item()

    def state_dict(self):
        self.asked += 1
        return {"at": self.at, "ballast": bytes(self.ballast)} | ({"odd": object} if self.odd else {})

    def load_state_dict(self, state):
        self.at = state["at"]


class Stateless(Stream):
    state_dict = None

    def __getattribute__(self, name):
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattribute__(name)


def loader(data, workers=2, **options):
    return DataLoader(data, 2, num_workers=workers, collate_fn=list, worker_init_fn=seed_worker, **options)


def test_another_number_of_workers_has_the_same_rows_and_a_word(caplog):
    first = epoch_of(loader(Noisy(), shuffle=True))
    taken(first, 5)
    position = first.position()
    rest = list(first)
    other = list(epoch_of(loader(Noisy(), 1, shuffle=True), position))
    assert [[row[0] for row in batch] for batch in other] == [[row[0] for row in batch] for batch in rest]
    assert other != rest
    assert "a run with 2 workers, and 1 go on" in caplog.text


def test_data_that_draw_nothing_change_workers_without_a_word(caplog):
    first = epoch_of(loader(list(range(20)), shuffle=True))
    taken(first, 3)
    position = first.position()
    assert list(epoch_of(loader(list(range(20)), 1, shuffle=True), position)) == list(first)
    assert not caplog.records


def test_a_stream_with_a_state_in_workers_is_not_read_again(caplog):
    first = epoch_of(loader(Stream()))
    taken(first, 5)
    position = first.position()
    rest = list(first)
    data = Stream()
    torch.manual_seed(99)
    assert list(epoch_of(loader(data), position)) == rest
    assert data.read.item() == sum(len(batch) for batch in rest)
    assert not caplog.records


def test_a_heavy_state_is_asked_for_less_often_and_a_few_batches_are_read_again():
    heavy = Stream(ballast=3 * STATE_BYTES_A_BATCH)
    first = epoch_of(loader(heavy))
    taken(first, 13)
    position = first.position()
    assert [worker["skip"] for worker in position["workers"]["each"]] == [2, 1]
    rest = list(first)
    assert heavy.asked.item() == 2 * 4  # after batches 1, 5 and 9 of ten, and at the end
    data = Stream(ballast=3 * STATE_BYTES_A_BATCH)
    assert list(epoch_of(loader(data), position)) == rest
    assert data.read.item() == sum(len(batch) for batch in rest) + 2 * 3


@pytest.mark.parametrize("data", [Stateless, lambda: Stream(odd=True)])
def test_a_stream_without_a_state_that_can_be_kept_is_read_again_and_that_is_said(data, caplog):
    first = epoch_of(loader(data()))
    taken(first, 5)
    position = first.position()
    rest = list(first)
    again = data()
    torch.manual_seed(99)
    assert list(epoch_of(loader(again), position)) == rest
    assert again.read.item() == 40
    assert "reads 5 batches of the training data again" in caplog.text


def test_an_epoch_that_is_broken_off_leaves_persistent_workers_at_its_last_batch():
    """They are ahead of it, by how much nobody knows who resumes; so they are set back."""
    mine = loader(Noisy(), shuffle=True, persistent_workers=True)
    first = epoch_of(mine)
    taken(first, 3)
    position = first.position()
    state = torch.get_rng_state()
    first.close()
    second = list(epoch_of(mine, epoch=1))
    from drivetrain.data import carry_over

    fresh = loader(Noisy(), shuffle=True, persistent_workers=True)
    carry_over(fresh, position, ONE)
    torch.set_rng_state(state)
    assert list(epoch_of(fresh, epoch=1)) == second


ROWS = 1_000_010


class Many(Dataset):
    """A million rows that are made when they are asked for; the calls are counted, in workers too."""

    def __init__(self):
        self.asked = counter()

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        self.asked += 1
        return index


class Order(RandomSampler):
    """Counts its calls; not plain, so that it is run through once for each resume."""

    calls = 0

    def __iter__(self):
        type(self).calls += 1
        return iter(range(ROWS))


class Grouped(LengthGroupedSampler):
    calls = 0

    def __iter__(self):
        type(self).calls += 1
        return super().__iter__()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["shuffled", "a sampler of one's own", "by length"])
def test_batch_one_million_is_as_near_as_batch_one(kind, workers):
    calls, loaders = {}, {}
    lengths = [1 + i % 13 for i in range(ROWS)] if kind == "by length" else None
    for at in (1, 1_000_000):
        data = Many()
        sampler = {
            "shuffled": lambda data=data: RandomSampler(data),
            "a sampler of one's own": lambda data=data: Order(data),
            "by length": lambda: Grouped(1, lengths=lengths),
        }[kind]()
        loaders[at] = DataLoader(data, 1, sampler=sampler, num_workers=workers, collate_fn=list)
        torch.manual_seed(0)
        first = epoch_of(loaders[at])
        next(first)
        position = first.position()
        first.close()
        data.asked.zero_()
        type(sampler).calls = 0
        resumed = epoch_of(loaders[at], {**position, "batch": at, "row": at})
        if workers:  # they fetch ahead; what is left at the end is fewer
            assert len(taken(resumed, 3)) == 3
            resumed.close()
            calls[at] = type(sampler).calls, data.asked.item() <= 3 + 2 * workers
        else:
            assert len(taken(resumed, 3)) == 3
            calls[at] = type(sampler).calls, data.asked.item()
    assert calls[1] == calls[1_000_000] == (kind != "shuffled", 3 if not workers else True)
