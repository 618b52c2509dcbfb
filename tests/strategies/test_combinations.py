"""Combinations, the short form: one strategy, and of the table's cells those in which most comes together.

The long form, every strategy and every cell, is `nox -s strategies`.
"""

from __future__ import annotations

import pytest
from rich.console import Console

from strategies.cells import all_cells, name_of, refusals
from strategies.combinations_page import grids, page
from strategies.combining import Combinations
from strategies.configurations import CONFIGURATIONS, lacking
from strategies.covering import Row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test waits for all runs

STRATEGIES = ("zero2",)


def telling(strategy: str) -> list[Row]:
    """Compiled; recomputed with a micro-batch left over, not clipped, in fp32 and in bf16; each way to be refused."""
    mine = [cell for cell in all_cells() if cell["strategy"] == strategy]
    trained = [cell for cell in mine if not refusals(cell)]
    compiled = next(c for c in trained if c["compile"] != "off" and c["accumulation"] != "3+1")
    left_over = {"checkpointing": "on", "accumulation": "3+1", "clipping": "off"}.items()
    return [
        compiled,
        *(cell for cell in trained if left_over <= cell.items()),
        *(cell for cell in mine if refusals(cell)),
    ]


CELLS = [cell for strategy in STRATEGIES for cell in telling(strategy)]


@pytest.fixture(scope="module")
def combinations(tmp_path_factory: pytest.TempPathFactory) -> Combinations:
    made = Combinations(tmp_path_factory.mktemp("combinations"), Console(quiet=True), patience=240.0)
    made.run([cell for cell in CELLS if lacking(CONFIGURATIONS[cell["strategy"]]) is None])
    return made


def skip_where_lacking(strategy: str) -> None:
    if (reason := lacking(CONFIGURATIONS[strategy])) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_a_combination(combinations: Combinations, cell: Row) -> None:
    """It trains as one process does, or is refused on every rank before the first micro-batch."""
    skip_where_lacking(cell["strategy"])
    found = combinations.cells[name_of(cell)]
    assert not found.wrong, "; ".join(found.wrong)
    assert bool(found.refused) == bool(refusals(cell))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_that_fails_in_the_middle_of_an_update_is_named_by_the_other(
    combinations: Combinations, strategy: str
) -> None:
    skip_where_lacking(strategy)
    assert combinations.broken[strategy] == []


def test_the_page_has_every_cell_and_reason(combinations: Combinations) -> None:
    text = page(combinations)
    assert text.count("\n| fp") + text.count("\n| bf16") == len(combinations.cells)
    refused = [cell for cell in combinations.cells.values() if cell.refused]
    assert all(cell.refused in text for cell in refused)
    assert grids(combinations)[-1].note.startswith(f"{len(refused)} cells")
