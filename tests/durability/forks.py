"""Training runs in forks of a process that has torch loaded: a run costs a quarter of a second, not three.

The process that forks has one thread, and has trained once, so that a fork finds every module loaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from durability.faults import Control

PATIENCE = 240.0
"""Seconds for a run that takes a quarter of one."""


class Place:
    """Where a run lives: its working folder, and beside it what is known about it.

    Args:
        root: in which folder.
        name: of the place.
        prepared: a working folder to begin with a copy of.
    """

    def __init__(self, root: str, name: str, prepared: str | None = None) -> None:
        self.folder = os.path.join(root, name)
        self.work = os.path.join(self.folder, "work")
        self.notes = os.path.join(self.folder, "notes")
        self.result = os.path.join(self.folder, "result.json")
        self.said = os.path.join(self.folder, "said")
        os.makedirs(self.folder)
        if prepared is None:
            os.mkdir(self.work)
        else:
            shutil.copytree(prepared, self.work, symlinks=True)
        self.control = Control(os.path.join(self.folder, "control"))
        self.control.arm(self.work)

    @property
    def out(self) -> str:
        return os.path.join(self.work, "out")

    def noted(self) -> list[tuple[str, int]]:
        """What the runs in this place have noted, in order."""
        if not os.path.exists(self.notes):
            return []
        lines = (line.split() for line in Path(self.notes).read_text().splitlines())
        return [(word, int(step)) for word, step in lines]

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(self.result).read_text())
        return found

    def last_words(self) -> str:
        return Path(self.said).read_text()[-3000:] if os.path.exists(self.said) else ""

    def remove(self) -> None:
        shutil.rmtree(self.folder)


class Child:
    """A forked process that trains, in a place."""

    def __init__(
        self,
        place: Place,
        settings: Mapping[str, Any],
        *,
        resume: str | bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.place = place
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            in_child(place, lambda: train(place, settings, resume), environment)
        os.close(writing)
        self._alive = reading  # readable when nobody holds the other end any more
        self.status: int | None = None

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the process; False where it goes on after so many seconds."""
        if self.status is None:
            if not select.select([self._alive], [], [], seconds)[0]:
                return False
            os.close(self._alive)
            _, self.status = os.waitpid(self.pid, 0)
        return True

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def was_killed(self) -> bool:
        return (
            self.status is not None
            and os.WIFSIGNALED(self.status)
            and os.WTERMSIG(self.status) == signal.SIGKILL
        )

    @property
    def went_well(self) -> bool:
        return self.status == 0

    def ends(self) -> bool:
        """Waits for the end; one that does not come is made, and False."""
        if self.wait(PATIENCE):
            return True
        self.kill()
        return False

    def ends_well(self) -> bool:
        return self.ends() and self.went_well

    def is_killed_soon(self) -> bool:
        return self.ends() and self.was_killed


def in_child(place: Place, action: Callable[[], None], environment: Mapping[str, str] | None) -> None:
    """What a fork does: it never returns."""
    status = 1
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it does not outlive the one that watches it
    try:
        said = os.open(place.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(environment or {})
        os.chdir(place.work)
        place.control.attach()
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def train(place: Place, settings: Mapping[str, Any], resume: str | bool) -> None:
    from durability import training

    training.run(place.notes, place.result, settings, resume)


def warm_up(root: str) -> None:
    """Loads what a run loads, by running one here."""
    from durability import training

    here = os.getcwd()
    place = Place(root, "warm-up")
    sys.stdout.flush()
    said = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        os.chdir(place.work)
        training.run(place.notes, place.result, {})
        training.run(place.notes, place.result, {})
    finally:
        sys.stdout.flush()
        os.dup2(said, 1)
        os.close(nowhere)
        os.close(said)
        os.chdir(here)
    place.remove()
