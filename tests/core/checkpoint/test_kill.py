"""A save that is killed anywhere leaves a valid last checkpoint, and nothing that a sweep cannot remove."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kills.py")
    # In memory where that is to be had: a killed process loses nothing that it has written, so the disk adds time alone.
    root = tempfile.mkdtemp(dir="/dev/shm") if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, str(script), root, "1", "97", "8"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    shutil.rmtree(root)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert int(counts["events"]) >= 100  # every event of both kinds of save
    assert int(counts["lines"]) >= 30
    assert int(counts["random"]) == 8
