"""save_async in several processes: under every strategy, with a rank that cannot write, with one that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.launch import torchrun

from drivetrain.checkpoint import checkpoints, validate

SCRIPT = Path(__file__).with_name("save_async_ranks.py")

pytestmark = pytest.mark.timeout(300)


@pytest.mark.soak
def test_both_forms_are_one_under_every_strategy(tmp_path: Path) -> None:
    engines = ["ddp", "fsdp", "fsdp1", "fsdp, each its part"]
    engines += ["zero1", "zero3"] if find_spec("deepspeed") is not None else []
    engines += ["oss"] if find_spec("fairscale") is not None else []
    said = torchrun(SCRIPT, str(tmp_path), "both", ";".join(engines))
    assert [name for name in engines if f"{name}: fine" not in said] == []
    assert (
        said.count("Own overrides _save, which checkpoints do not call while each process writes a part") == 1
    )


def test_what_one_rank_cannot_write_is_an_error_or_a_warning_on_all(tmp_path: Path) -> None:
    said = torchrun(SCRIPT, str(tmp_path), "limit")
    assert "rank 0: fine" in said
    assert "rank 1: fine" in said
    # Two kinds of state, of which one fails in two ways, in two forms, on two ranks.
    assert said.count("The run goes on without this checkpoint") == 3 * 2 * 2


@pytest.mark.soak
def test_a_rank_is_killed_while_the_others_thread_waits_for_it(tmp_path: Path) -> None:
    """Without a launcher, which would end the other rank."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    environment |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "kill"],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert started[1].returncode == -signal.SIGKILL, said[1]
    assert started[0].returncode == 1, said[0]
    assert "rank 0 has noticed" in said[0]
    assert [(step, validate(folder)) for step, folder in checkpoints(str(tmp_path))] == [(2, None)]
    torchrun(SCRIPT, str(tmp_path), "resume")
