"""The benchmarks run, on every kind of data; what they measure is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
def test_overhead_runs_on_every_kind_of_data(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [
        "--engines",
        "hand,drivetrain,drivetrain-bar",
        "--data",
        "all",
        "--rounds",
        "1",
        "--steps",
        "250",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, str(BENCH / "overhead.py"), *words, str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(out.read_text())["data"]
    assert set(figures) == {"rows", "list", "pairs", "batches"}
    for kind in figures.values():
        assert set(kind["engines"]) == {"hand", "drivetrain", "drivetrain-bar"}
        assert all(len(rounds) == 1 and len(rounds[0]) == 1 for rounds in kind["windows"].values())
        assert set(kind["targets_met"]) == {"drivetrain to hand", "drivetrain-bar to drivetrain"}


def test_an_unknown_engine_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "overhead.py"), "--engines", "hand,nobody"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown: nobody" in done.stderr
