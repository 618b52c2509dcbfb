"""Processes with the environment that a launcher would give them, started by the test itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]

# What a launcher that runs the tests themselves may have set.
_LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
    "GROUP_",
    "TORCHELASTIC_",
    "SLURM_",
    "PMI_",
    "OMPI_",
    "MPI_",
)


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative for a signal.
        out, err: what it wrote.
        seconds: how long it ran.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The last line of an error, without the class before it."""
        lines = [line.partition("]:")[2] or line for line in self.err.splitlines()]
        last = next((line for line in reversed(lines) if "Error: " in line), "")
        return last.strip()


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    """This process's, without any launcher's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return (
        kept
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        | {name: str(value) for name, value in more.items()}
    )


def as_torchrun(rank: int, size: int, port: int) -> dict[str, object]:
    """The variables of torchrun on one machine."""
    return {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def run(
    words: Sequence[str],
    environments: Sequence[Mapping[str, object]],
    timeout: float = 120.0,
    enough: int | None = None,
) -> list[Ended]:
    """Runs `python WORDS` once for each environment, all at a time.

    Whoever still runs after `timeout` seconds, or when `enough` have ended, is killed and has code -9.
    """
    began = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *words],
            env=environment(**own),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for own in environments
    ]
    ended: dict[int, Ended] = {}
    try:
        # Read in turn: what they write is short enough for a pipe to hold.
        while len(ended) < (enough or len(running)) and time.monotonic() - began < timeout:
            for place, process in enumerate(running):
                if place not in ended and process.poll() is not None:
                    out, err = process.communicate()
                    ended[place] = Ended(process.returncode, out, err, time.monotonic() - began)
            time.sleep(0.05)
    finally:
        for place, process in enumerate(running):
            if place not in ended:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                ended[place] = Ended(process.returncode, out, err, time.monotonic() - began)
    return [ended[place] for place in range(len(running))]
