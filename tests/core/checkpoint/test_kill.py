"""A save that is killed anywhere leaves a valid last checkpoint, and nothing that a sweep cannot remove."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kills.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "1", "37", "12"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert int(counts["events"]) >= 60  # every event of both kinds of save
    assert int(counts["lines"]) >= 30
    assert int(counts["random"]) == 12
