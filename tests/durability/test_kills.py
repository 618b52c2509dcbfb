"""The short form of the kills, and of the calls that fail. The long form is `nox -s kills`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from durability import faults

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(faults.lacking() is not None, reason=str(faults.lacking()))


def python(*words: str, **variables: str) -> str:
    """What `python -m ...` prints."""
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_a_killed_run_ends_as_if_it_had_not_been_killed() -> None:
    rows = json.loads(python("durability", "--kills", "20", "--json"))
    assert sum(row["kills"] for row in rows.values()) >= 20
    assert not any(row["mismatches"] for row in rows.values())
    fell = {word for row in rows.values() for word, count in row["fell"].items() if count}
    assert {"save", "rotation", "training"} <= fell
    assert sum(row["resumed"] for row in rows.values()) >= 8
    assert {"every call, sync", "every call, async", "random, sync", "random, async"} <= rows.keys()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    return faults.build(str(tmp_path_factory.mktemp("shim")))


def test_any_call_of_a_save_may_fail(tmp_path: Path, shim: str) -> None:
    """ENOSPC, EIO, EACCES and EDQUOT: what was there is whole, nothing is left over, and the next save works."""
    counts = json.loads(python("durability.failing", str(tmp_path), "checkpoint", "5", LD_PRELOAD=shim))
    assert counts["refused"] >= 80
    assert counts["went on"] >= 10


def test_a_run_outlives_a_save_that_fails(tmp_path: Path, shim: str) -> None:
    """With on_save_error="warn" it goes on, and the next save works; without it the next start goes on."""
    counts = json.loads(python("durability.failing", str(tmp_path), "run", "97", LD_PRELOAD=shim))
    assert counts["runs"] >= 16
    assert counts["lost"] >= 3
    assert counts["stopped"] >= 3
