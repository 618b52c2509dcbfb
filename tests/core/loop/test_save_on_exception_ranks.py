"""save_on_exception in several processes: one of them fails, and all write what they had after the last update."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.launch import torchrun

SCRIPT = Path(__file__).with_name("exception_ranks.py")
WRITTEN = ("forward", "backward", "second epoch", "async", "everybody", "data", "callback")
REFUSED = ("begun", "due", "weights", "update")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_all_write_after_an_error_of_one(tmp_path: Path, processes: int) -> None:
    said = torchrun(SCRIPT, str(tmp_path), "ddp", processes=processes)
    for scenario in (*WRITTEN, *REFUSED):
        for rank in range(processes):
            assert f"{scenario}: fine on rank {rank}" in said, said[-3000:]


@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """It has told nothing of where it was: the others say so, and end."""
    said = torchrun(SCRIPT, str(tmp_path), "ddp", "killed", code=1)
    assert (
        "KILLED: save_on_exception: no checkpoint is written. Another process of this run has ended: rank 1"
        in said
    )


@pytest.mark.soak
@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        ("fsdp", "under the strategy 'fsdp', whose state an error leaves unknown."),
        ("own group", "where the script makes the process group, which would have to be made anew"),
    ],
)
def test_where_it_cannot_be_is_said(tmp_path: Path, strategy: str, why: str) -> None:
    said = torchrun(SCRIPT, str(tmp_path), strategy, "said")
    assert f"SAID: save_on_exception=True has no effect {why}" in said
