"""Runs in several processes, or in fresh ones, that are killed: one rank or all, by us or under torchrun."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.by_hand import free_port

from durability.forks import PATIENCE, Child, Place

WORLD = 2
# A rank that waits for one that is dead ends by itself, or, as under a launcher, is ended.
GRACE = 10.0


class Group:
    """A run in two processes: what Child is for one.

    Args:
        place, settings: of the run.
        draw: which ranks are killed, where they are.
    """

    def __init__(self, place: Place, settings: Mapping[str, Any], draw: random.Random) -> None:
        common = {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
        common["MASTER_PORT"] = str(free_port())
        self.draw = draw
        self.children = [
            Child(place, settings, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(WORLD)
        ]

    def wait(self, seconds: float) -> bool:
        """Waits for the end of rank 0; where it comes, the others are waited for as well."""
        if not self.children[0].wait(seconds):
            return False
        ended = [child.ends() for child in self.children]  # none is left behind, whatever the others did
        return all(ended)

    def kill(self) -> None:
        """Kills one rank or both. One that is left ends by itself, or, as under a launcher, is ended."""
        hit = self.children if self.draw.random() < 0.4 else [self.draw.choice(self.children)]
        for child in hit:
            if child.status is None:
                os.kill(child.pid, signal.SIGKILL)
        for child in self.children:
            if not child.wait(GRACE):
                child.kill()

    def ends_well(self) -> bool:
        well = [child.ends_well() for child in self.children]
        return all(well)

    @property
    def status(self) -> list[int | None]:
        return [child.status for child in self.children]


class Fresh:
    """A run in a process that was not forked, without the shim."""

    def __init__(self, place: Place, settings: Mapping[str, Any]) -> None:
        begun = Path(f"{place.notes}.0.pid")
        begun.unlink(missing_ok=True)
        given = {"notes": place.notes, "result": place.result, "settings": settings}
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        command = [sys.executable, "-m", "durability.training", json.dumps(given)]
        with open(place.said, "ab") as said:
            self.process = subprocess.Popen(
                command, cwd=place.work, env=environment, stdout=said, stderr=said
            )
        while not begun.exists() and self.process.poll() is None:
            time.sleep(0.01)  # torch is being loaded

    def wait(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ends_well(self) -> bool:
        if not self.wait(PATIENCE):
            self.kill()
        return self.status == 0

    @property
    def status(self) -> int | None:
        return self.process.returncode


def under_torchrun(
    place: Place, settings: Mapping[str, Any], kills: int, draw: random.Random, seconds: float
) -> int:
    """A run under `torchrun --max-restarts` in fresh processes, whose workers are killed at random moments.

    Returns:
        How many times workers were killed: one of them, or both.
    """
    given = {"notes": place.notes, "result": place.result, "settings": settings}
    # A store of its own for each attempt, and no word to the terminal.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    command += ["--max-restarts", str(2 * kills), "-m", "durability.training", json.dumps(given)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with open(place.said, "ab") as said:
        agent = subprocess.Popen(command, cwd=place.work, env=environment, stdout=said, stderr=said)
    done = 0
    gone: set[int] = set()  # processes of attempts that are over
    while done < kills and agent.poll() is None:
        workers = _workers(place)
        if len(workers) < WORLD or set(workers) & gone:
            time.sleep(0.02)  # the next ones are not there yet
            continue
        notes = len(place.noted()) + draw.randrange(25)  # of about 40 that a run writes
        while len(place.noted()) < notes and agent.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, seconds / 10))
        hit = 0
        for pid in workers if draw.random() < 0.5 else [draw.choice(workers)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it had ended
            hit += 1
        if not hit:
            break
        done += 1
        gone |= set(workers)
    agent.wait(300)
    assert agent.returncode == 0, place.last_words()
    return done


def _workers(place: Place) -> list[int]:
    """The processes of the last attempt, by what they have noted."""
    found = [Path(f"{place.notes}.{rank}.pid") for rank in range(WORLD)]
    return [int(path.read_text()) for path in found if path.exists() and path.read_text()]
