"""Dealing rows over ranks: pure functions."""

import functools
import operator

import torch
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.data.dealing import CHUNK, count, deal, dealt_batches, dealt_rows, dealt_units, shares

WORLDS = st.integers(1, 4)


@given(st.integers(0, 50), WORLDS)
def test_shares_are_even_and_whole(rows, world):
    parts = shares(rows, world)
    assert len(parts) == world
    assert sum(parts) == rows
    assert max(parts) - min(parts) <= 1
    assert list(parts) == sorted(parts, reverse=True)


@given(st.integers(1, 60), st.integers(1, 5), WORLDS, st.booleans())
def test_any_world_runs_the_rows_that_one_process_runs(rows, batch_size, world, drop_last):
    order = torch.randperm(rows)
    one = [item.rows for item in dealt_rows(order, 0, batch_size * world, drop_last, 1, 0)]
    ranks = [list(dealt_rows(order, 0, batch_size, drop_last, world, rank)) for rank in range(world)]
    assert len(one) == count(rows, batch_size * world, drop_last)
    assert {len(batches) for batches in ranks} == {len(one)}
    for batch, parts in zip(one, zip(*ranks, strict=True), strict=True):
        assert functools.reduce(operator.iadd, (part.rows for part in parts if part.weight), []) == batch
        assert abs(sum(part.weight for part in parts) - world) < 1e-9
        for rank, part in enumerate(parts):
            assert part.shares[rank] == (len(part.rows) if part.weight else 0)
            assert part.weight == part.shares[rank] * world / len(batch)
            if not part.weight:
                assert part.rows == batch[:1]


@given(st.integers(1, 60), st.integers(1, 5), WORLDS, st.booleans())
def test_what_remains_is_the_rest_of_the_whole(rows, batch_size, world, drop_last):
    order = list(range(rows))
    for rank in range(world):
        whole = list(dealt_rows(order, 0, batch_size, drop_last, world, rank))
        for seen in range(len(whole) + 2):
            rest = list(dealt_rows(order, seen * batch_size * world, batch_size, drop_last, world, rank))
            assert rest == whole[seen:]


def test_a_long_order_is_dealt_like_a_short_one():
    order = torch.arange(3 * CHUNK + 5)
    rows = [row for item in dealt_rows(order, 7, 1000, False, 1, 0) for row in item.rows]
    assert rows == list(range(7, 3 * CHUNK + 5))


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=4), max_size=9), WORLDS)
def test_a_batch_sampler_gives_every_row_once(batches, world):
    ranks = [list(dealt_batches(batches, world, rank)) for rank in range(world)]
    assert len({len(items) for items in ranks}) == 1
    seen = [row for parts in zip(*ranks, strict=True) for part in parts if part.weight for row in part.rows]
    assert seen == [row for batch in batches for row in batch]
    for parts in zip(*ranks, strict=True):
        assert abs(sum(part.weight for part in parts) - world) < 1e-9


@given(st.integers(0, 9), WORLDS)
def test_whole_batches_go_round_the_ranks(number, world):
    ranks = [list(dealt_units(range(number), world, rank)) for rank in range(world)]
    seen = [part.rows for parts in zip(*ranks, strict=True) for part in parts if part.weight]
    assert seen == list(range(number))
    for parts in zip(*ranks, strict=True):
        assert abs(sum(part.weight for part in parts) - world) < 1e-9


def test_a_rank_without_rows_takes_the_first_with_weight_zero():
    assert deal([5, 6], 3, 2) == ([5], 0.0, (1, 1, 0))
    assert deal([5, 6], 3, 0) == ([5], 1.5, (1, 1, 0))
