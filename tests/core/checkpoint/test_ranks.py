"""Several ranks write one checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_two_ranks_write_one_checkpoint_and_fail_together(output: Path) -> None:
    script = Path(__file__).with_name("ranks.py")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(script),
            str(output),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0 done" in done.stdout
    assert "rank 1 done" in done.stdout
