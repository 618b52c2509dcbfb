"""The benchmark of loggers runs, and each of its runs ends as the one without a logger; no time is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "loggers.py"


@pytest.mark.slow
def test_loggers_take_nothing_from_a_run(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--steps", "60", "--width", "8", "--every", "2"]
    done = subprocess.run(
        [sys.executable, str(BENCH), *words],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = done.stdout.splitlines()[2:-1]
    kinds = [line[:12].strip() for line in rows]
    assert kinds == ["none", "raises", "sleeps", "killed", "stopped", "none again"]
    assert all(line.endswith("  yes") for line in rows[1:])  # weights and log as without a logger
