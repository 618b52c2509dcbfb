"""Starting a script in several processes, by torchrun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def torchrun(script: Path, *arguments: str, processes: int = 2, timeout: int = 240, code: int = 0) -> str:
    """Runs a script under torchrun on gloo and returns what it printed; fails the test where it ends otherwise.

    What is not at its end after `timeout` seconds is ended with all its processes; each says where it stood.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        str(script),
        *arguments,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        started = workers(process.pid)
        for pid in started:
            os.kill(pid, signal.SIGABRT)
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            for pid in (process.pid, *started):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            out, err = process.communicate()
        pytest.fail(f"torchrun was not at its end after {timeout} s:\n{out[-3000:]}\n{err[-9000:]}")
    if process.returncode != code:
        pytest.fail(f"torchrun ended with {process.returncode}:\n{out[-3000:]}\n{err[-6000:]}")
    return out + err


def workers(agent: int) -> list[int]:
    """The processes that an agent of torchrun has started, which lead groups of their own."""
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
