"""Covering arrays, and that of the combinations."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.cells import (
    FACTORS,
    REQUIRED,
    all_cells,
    name_of,
    refusals,
    refused_targets,
    required,
    trained_targets,
)
from strategies.configurations import CONFIGURATIONS
from strategies.covering import Row, cover, covered, pairs

sizes = st.lists(st.integers(1, 5), min_size=2, max_size=5)


def factors_of(counts: list[int]) -> dict[str, tuple[str, ...]]:
    return {f"f{n}": tuple(f"v{i}" for i in range(count)) for n, count in enumerate(counts)}


quick = settings(deadline=None, max_examples=40)


@quick
@given(sizes)
def test_every_pair_stands_together(counts: list[int]) -> None:
    factors = factors_of(counts)
    rows = cover(factors, pairs(factors))
    assert covered(pairs(factors), rows) == set(pairs(factors))
    one, other = sorted(counts)[-2:]
    assert one * other <= len(rows) <= len(pairs(factors))
    assert all(list(row) == list(factors) for row in rows)


@quick
@given(sizes, st.data())
def test_what_cannot_stand_together_hides_no_pair(counts: list[int], data: st.DataObject) -> None:
    factors = factors_of([count + 2 for count in counts])
    never = data.draw(st.sampled_from(pairs(factors)))

    def possible(row: Row) -> bool:
        return not never <= set(row.items())

    rows = cover(factors, [pair for pair in pairs(factors) if pair != never], possible=possible)
    assert covered(pairs(factors), rows) == set(pairs(factors)) - {never}


def test_rows_that_are_begun_come_back_whole() -> None:
    factors = factors_of([2, 3, 4])
    begun = [{"f1": value} for value in factors["f1"]]
    rows = cover(factors, pairs(factors), begun)
    assert [row["f1"] for row in rows[:3]] == list(factors["f1"])
    assert covered(pairs(factors), rows) == set(pairs(factors))


def test_a_row_that_nothing_fits_is_an_error() -> None:
    with pytest.raises(ValueError, match="No f1 fits"):
        cover(factors_of([1, 1]), [], [{"f0": "v0"}], possible=lambda row: "f1" not in row)


def test_the_array_is_always_the_same() -> None:
    """Also where sets have another order."""
    script = (
        "import json, sys; from strategies.covering import cover, pairs; factors = json.loads(sys.argv[1]); "
        "print(json.dumps(cover(factors, pairs(factors))))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    printed = {
        subprocess.run(
            [sys.executable, "-c", script, json.dumps(FACTORS)],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {json.dumps(cover(FACTORS, pairs(FACTORS))) + "\n"}


def test_every_pair_of_values_stands_in_a_cell() -> None:
    """One that trains, where the two can; and one with a single reason where they cannot."""
    cells = all_cells()
    assert covered(pairs(FACTORS), cells) == set(pairs(FACTORS))
    trained = [cell for cell in cells if not refusals(cell)]
    assert covered(trained_targets(), trained) == set(trained_targets())
    refused = [cell for cell in cells if refusals(cell)]
    assert covered(refused_targets(), refused) == set(refused_targets())
    assert all(len(refusals(cell)) == 1 for cell in refused)
    assert len({name_of(cell) for cell in cells}) == len(cells)


@pytest.mark.parametrize("strategy", CONFIGURATIONS)
def test_what_must_train_under_every_strategy_is_a_cell_that_must_train(strategy: str) -> None:
    """fp32 and bf16, accumulation, clipping, gradient checkpointing, each with each."""
    names = ("precision", "accumulation", "clipping", "checkpointing")
    there = {
        tuple(cell[name] for name in names)
        for cell in all_cells()
        if cell["strategy"] == strategy and not refusals(cell)
    }
    wanted = set(itertools.product(("fp32", "bf16"), ("1", "3", "3+1"), ("on", "off"), ("off", "on")))
    assert there == wanted
    assert tuple(REQUIRED) == names
    assert len(required()) == len(wanted) * len(CONFIGURATIONS)


def test_nothing_is_refused_that_must_train() -> None:
    for row in required():
        assert not refusals(row), name_of(row | {"optimizer": "adamw_torch"})
        assert not refusals(row | {"optimizer": "adamw_torch"})
