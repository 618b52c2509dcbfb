"""Several real processes: the rows of an update are those of one process with larger batches."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from drivetrain.data import EpochIterator, EvaluationIterator, LengthGroupedSampler, SeededRandomSampler

ARGS = SimpleNamespace(ignore_data_skip=False)
ROWS = 23
DATA = list(range(ROWS))


class Buckets(Sampler):
    def __iter__(self):
        batches = [[0, 1], [3, 4], [5, 6], [7, 8], [9, 10, 11]]
        random.shuffle(batches)
        return iter(batches)

    def __len__(self):
        return 5


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class Uneven:
    """A loader of each rank's own, of another length on each."""

    def __init__(self, rank):
        self.rank = rank

    def __iter__(self):
        for i in range(2 + self.rank):
            yield torch.tensor([10 * self.rank + i] * 2)


def listed(rows):
    return list(rows)


def noisy(rows):
    return [list(rows), torch.rand(1).item()]


def loaders(world, rank):
    """By name, of batches such that all ranks together take six rows at once."""
    size = 6 // world
    return {
        "shuffled": lambda: DataLoader(DATA, size, shuffle=True, collate_fn=list),
        "drop_last": lambda: DataLoader(DATA, size, shuffle=True, drop_last=True, collate_fn=list),
        "in order": lambda: DataLoader(DATA, size, collate_fn=list),
        "by length": lambda: DataLoader(
            DATA, size, sampler=LengthGroupedSampler(6, lengths=DATA), collate_fn=list
        ),
        "seeded": lambda: DataLoader(DATA, size, sampler=SeededRandomSampler(DATA, 3), collate_fn=list),
        "stream": lambda: DataLoader(Stream(), size, collate_fn=list),
        "worker": lambda: DataLoader(DATA, size, shuffle=True, num_workers=1, collate_fn=listed),
        "stream of a worker": lambda: DataLoader(Stream(), size, num_workers=1, collate_fn=torch.tensor),
    }


def everything(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world
    )
    processes = SimpleNamespace(rank=rank, world_size=world, device=torch.device("cpu"))

    def epoch_of(loader, position=None, epoch=0):
        return EpochIterator(loader, args=ARGS, processes=processes, epoch=epoch, position=position)

    def dealt(iterator):
        return [
            (list(map(int, batch)) if iterator.weight else [], iterator.weight, iterator.rows)
            for batch in iterator
        ]

    results = {}
    for name, make in loaders(world, rank).items():
        # Ranks may have drifted apart; rank 0's numbers count.
        torch.manual_seed(7 + rank)
        random.seed(7 + rank)
        iterator = epoch_of(make())
        results[name] = dealt(iterator)
        assert iterator.index == iterator.batches or iterator.batches is None
        torch.manual_seed(7 + rank)
        first = epoch_of(make())
        head = [list(map(int, next(first))), list(map(int, next(first)))]
        position = json.loads(json.dumps(first.position()))
        torch.manual_seed(99 - rank)
        resumed = epoch_of(make(), position)
        assert dealt(resumed) == results[name][2:], name
        assert head == [batch for batch, _, _ in results[name][:2]]
        if rank == 0:
            results[f"{name}, position"] = position

    torch.manual_seed(7 + rank)
    random.seed(7 + rank)
    results["buckets"] = dealt(epoch_of(DataLoader(DATA, batch_sampler=Buckets(), collate_fn=list)))
    results["no batches"] = [
        (batch.tolist(), iterator.weight)
        for iterator in [
            epoch_of(DataLoader(DATA, batch_size=None, collate_fn=lambda row: torch.tensor([row])))
        ]
        for batch in iterator
    ]

    # Each rank's own noise, over a resume; of its workers too.
    for workers in (0, 1):

        def noise(workers=workers):
            return DataLoader(DATA, 6 // world, shuffle=True, collate_fn=noisy, num_workers=workers)

        torch.manual_seed(rank)
        iterator, seen = epoch_of(noise()), []
        for batch in iterator:
            seen.append((batch, torch.rand(1).item()))
            if len(seen) == 2:
                position, state = json.loads(json.dumps(iterator.position())), torch.get_rng_state()
        resumed = epoch_of(noise(), position)
        torch.set_rng_state(state)
        assert [(batch, torch.rand(1).item()) for batch in resumed] == seen[2:]

    # What is split already is not split again.
    sampler = DistributedSampler(DATA, world, rank)
    sampler.set_epoch(0)
    assert [
        row for batch in epoch_of(DataLoader(DATA, 2, sampler=sampler, collate_fn=list)) for row in batch
    ] == list(sampler)
    iterator = epoch_of(Uneven(rank))
    own = [(batch.tolist(), iterator.weight) for batch in iterator]
    assert len(own) == world + 1
    results["uneven"] = own

    evaluation = EvaluationIterator(
        DataLoader(DATA, 6 // world, collate_fn=torch.tensor), processes=processes
    )
    results["evaluation"] = [
        (batch.tolist(), evaluation.true_shares(len(batch) if evaluation.weight else 0))
        for batch in evaluation
    ]
    with open(f"{folder}/{world}-{rank}.json", "w") as file:
        json.dump(results, file)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[3])
def ranks(request, tmp_path_factory):
    """The results of each rank."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(everything, (world, str(folder)), nprocs=world)
    return [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]


def one(name, position=None):
    processes = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    torch.manual_seed(7)
    return EpochIterator(loaders(1, 0)[name](), args=ARGS, processes=processes, epoch=0, position=position)


@pytest.mark.parametrize("name", loaders(1, 0))
def test_ranks_together_run_what_one_process_runs(ranks, name):
    world = len(ranks)
    expected = [list(map(int, batch)) for batch in one(name)]
    assert {len(results[name]) for results in ranks} == {len(expected)}
    for number, batch in enumerate(expected):
        parts = [results[name][number] for results in ranks]
        assert [row for rows, _, _ in parts for row in rows] == batch
        for rows, weight, counted in parts:
            assert counted == len(rows)
            assert weight == pytest.approx(len(rows) * world / len(batch))


@pytest.mark.parametrize("name", loaders(1, 0))
def test_one_process_goes_on_where_ranks_have_stopped(ranks, name):
    resumed = one(name, ranks[0][f"{name}, position"])
    assert list(map(list, resumed)) == list(map(list, one(name)))[2:]


def test_the_order_of_a_foreign_sampler_is_rank_0s(ranks):
    random.seed(7)
    order = [row for batch in Buckets() for row in batch]
    steps = zip(*(results["buckets"] for results in ranks), strict=True)
    assert [row for parts in steps for rows, _, _ in parts for row in rows] == order


def test_whole_batches_go_round(ranks):
    steps = list(zip(*(results["no batches"] for results in ranks), strict=True))
    assert [rows[0] for parts in steps for rows, weight in parts if weight] == DATA
    assert all(sum(weight for _, weight in parts) == pytest.approx(len(ranks)) for parts in steps)


def test_loaders_of_unequal_length_end_together(ranks):
    steps = list(zip(*(results["uneven"] for results in ranks), strict=True))
    for number, parts in enumerate(steps):
        for rank, (rows, weight) in enumerate(parts):
            if number < 2 + rank:
                assert rows == [10 * rank + number] * 2
                assert weight > 0
            else:
                assert (rows, weight) == ([10 * rank + 1 + rank], 0.0)
        assert sum(weight for _, weight in parts) == pytest.approx(len(ranks))


def test_evaluation_sees_every_row_once_in_order(ranks):
    rows = []
    for parts in zip(*(results["evaluation"] for results in ranks), strict=True):
        assert len({tuple(shares) for _, shares in parts}) == 1
        for (batch, shares), rank in zip(parts, range(len(ranks)), strict=True):
            rows += batch[: shares[rank]]
    assert rows == DATA
    assert np.array_equal(rows, DATA)
