"""Several processes that are told to leave, or of which one is: all save after the same step, and go on exactly."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.by_hand import as_torchrun, environment, free_port, run

SCRIPT = str(Path(__file__).with_name("leave_script.py"))
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "code", "settings"),
    [
        ("SIGUSR1", 75, {}),
        ("SIGTERM", 75, {"save_async": True}),
        ("SIGINT", -signal.SIGINT, {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 50}}),
    ],
)
def test_a_signal_to_one_of_two(tmp_path: Path, name: str, code: int, settings: dict[str, Any]) -> None:
    port = free_port()
    words = [SCRIPT, str(tmp_path), json.dumps({"signal": name, "ddp_timeout": 60, **settings})]
    first, second = run(words, [as_torchrun(rank, 2, port) for rank in range(2)])
    assert (first.code, second.code) == (code, code), first.err + second.err
    assert "EXACT" in first.out
    (step,) = re.findall(rf"^Stopped by {name} after step (\d+) of 60; ", first.err, re.MULTILINE)
    assert f"{tmp_path}/run/checkpoint-{step} is written. To go on, start it again with" in first.err
    assert not any(line.startswith("Stopped by") for line in second.err.splitlines())


def test_torchrun_is_told_to_leave(tmp_path: Path) -> None:
    """It signals each process's group, in which torch's data workers would be too."""
    running = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", SCRIPT, str(tmp_path), json.dumps({"dataloader_num_workers": 1})),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        assert running.stdout is not None
        while "HERE" not in (line := running.stdout.readline()):
            assert line or running.poll() is None
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert "EXACT" in out, err
    assert err.count("Stopped by SIGTERM after step ") == 1
    assert "Unable to shutdown" not in err  # all left by themselves
