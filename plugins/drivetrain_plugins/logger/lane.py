"""One thread and one bounded queue for the loggers of a name: training hands over a row, and never waits for it.

A lane belongs to a process and outlives a training: the loggers of one name follow each other on it, so that a second
training opens its tracker when the first has closed its own, and a server that hangs holds up one thread, however many
trainings there are.

Who is forked in the meantime (workers that read data) has none of the threads, but all of their locks as they are at
that moment. The one that would hold up such a process is the lock of a module that is being imported, and libraries
import much when a tracker is opened: a fork waits until it is open, for at most `PATIENCE` seconds.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivetrain_plugins.logger.base import Logger
    from drivetrain_plugins.logger.facts import Facts

logger = logging.getLogger("drivetrain")

PATIENCE = 10.0
"""Seconds that a fork waits for trackers that are being opened, once."""
LAG = 1.0
"""Seconds after which a row that is not written yet means that its logger does not keep up."""

_lanes: dict[str, Lane] = {}
_keeper: threading.Thread | None = None
_making = threading.Lock()


@dataclass(slots=True)
class Job:
    """Something that a logger is to do.

    Attributes:
        owner: the logger.
        facts: of the run that it belongs to.
        work: does it; what it raises is the owner's failure.
        is_row: whether it is a row of the log, which may be dropped where the queue is full.
        put: when it was put into the queue, by the monotonic clock.
    """

    owner: Logger
    facts: Facts
    work: Callable[[], None]
    is_row: bool = False
    put: float = field(default_factory=time.monotonic)


class Lane:
    """The thread, and what it has to do.

    Args:
        name: of the loggers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: deque[Job] = deque()
        self._rows = 0
        self._current: Job | None = None
        self._owners: list[Logger] = []  # those that have something open, or to do
        self._changed = threading.Condition()
        self._settling = False  # a tracker is being opened
        self._patience = PATIENCE
        self._hurry = float("inf")  # when the process has waited long enough for rows
        self.thread = threading.Thread(target=self._work, name=f"drivetrain-logger-{name}", daemon=True)
        self.thread.start()

    def put(self, job: Job, size: int) -> None:
        """Adds a job; a full queue loses its oldest row.

        Args:
            job: what is to be done.
            size: rows that may wait.
        """
        with self._changed:
            if job.owner not in self._owners:
                self._owners.append(job.owner)
            if job.is_row and self._rows >= size:
                self._drop(next(old for old in self._jobs if old.is_row))
            self._jobs.append(job)
            self._rows += job.is_row
            self._changed.notify_all()

    def wait(self, owner: Logger, seconds: float) -> bool:
        """Waits until a logger has nothing to do, and tells whether it has come to that."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._left(owner), seconds)

    def wait_until_open(self, owner: Logger, seconds: float) -> bool:
        """Waits until a logger's tracker is open or has failed to, and tells whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: owner.is_open or owner.failure is not None, seconds)

    def rows_left(self, owner: Logger) -> int:
        """Rows of a logger that are not written yet."""
        with self._changed:
            return sum(job.is_row for job in self._left(owner))

    def lag(self) -> float:
        """The age of the oldest job that is not done, in seconds."""
        with self._changed:
            oldest = self._current or (self._jobs[0] if self._jobs else None)
            return time.monotonic() - oldest.put if oldest is not None else 0.0

    def _left(self, owner: Logger) -> list[Job]:
        waiting = [job for job in self._jobs if job.owner is owner]
        return [self._current, *waiting] if self._current and self._current.owner is owner else waiting

    def _take_out(self, job: Job) -> None:
        self._jobs.remove(job)
        self._rows -= job.is_row

    def _drop(self, job: Job) -> None:
        self._take_out(job)
        job.owner.dropped += 1

    # -- in the thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs))
                job = self._jobs[0]
                owner = job.owner
                opens = not owner.is_open
                if opens and not owner.is_ending and (pause := owner.retry_at - time.monotonic()) > 0:
                    self._changed.wait(pause)  # rows wait as well, as many as the queue holds
                    continue
                if job.is_row and time.monotonic() > self._hurry:
                    self._drop(job)
                    continue
                self._current = job
                self._settling = opens and owner.failure is None
                if not opens:
                    self._jobs.popleft()
                    self._rows -= job.is_row
            if opens:
                owner.try_to_open(job.facts)
            else:
                owner.try_to(job)
            with self._changed:
                self._settling = False
                gives_up = opens and not owner.is_open and owner.is_ending
                if gives_up:
                    self._give_up(owner)
            if gives_up:
                owner.tell_losses()
            with self._changed:
                self._current = None
                if not owner.is_open and not self._left(owner) and owner in self._owners:
                    self._owners.remove(owner)
                self._changed.notify_all()

    def _give_up(self, owner: Logger) -> None:
        """Its tracker could not be opened to the end: what it was to write is lost."""
        for job in [job for job in self._jobs if job.owner is owner]:
            self._take_out(job)
            owner.failed += job.is_row

    # -- when a process forks or ends ---------------------------------------------------------------------

    def wait_for_fork(self) -> None:
        """Waits until no tracker is being opened; who has waited in vain once, does not wait again."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._settling, self._patience):
                self._patience = 0.0

    def begin_to_end(self, began: float) -> None:
        """Tells the loggers to write what they have, and to close; for rows there is half of the time.

        Args:
            began: when the process began to end.
        """
        with self._changed:
            owners = list(self._owners)
            self._hurry = began + max((owner.options.close_timeout for owner in owners), default=0.0) / 2
        for owner in owners:
            owner.end()

    def finish(self, began: float) -> None:
        """Waits for them, and says what is lost where that has been in vain."""
        for owner in list(self._owners):
            seconds = owner.options.close_timeout
            if not self.wait(owner, max(0.0, began + seconds - time.monotonic())):
                logger.warning(
                    "Logger %r was not done %g s (close_timeout) after the end of the process began, and is left: %d "
                    "rows of the log are not in it.",
                    self.name,
                    seconds,
                    self.rows_left(owner) + owner.failed + owner.dropped,
                )


def lane_of(name: str) -> Lane:
    """The lane of the loggers of a name in this process."""
    global _keeper
    with _making:
        if name not in _lanes:
            _lanes[name] = Lane(name)
        if _keeper is None:
            # No daemon: the interpreter waits for it, and has ended nothing that loggers may need then.
            _keeper = threading.Thread(target=_finish_at_exit, name="drivetrain-loggers")
            _keeper.start()
        return _lanes[name]


def _finish_at_exit() -> None:
    threading.main_thread().join()
    began = time.monotonic()
    lanes = list(_lanes.values())
    for lane in lanes:
        lane.begin_to_end(began)
    for lane in lanes:
        lane.finish(began)


def _before_fork() -> None:
    lanes = list(_lanes.values())
    if threading.current_thread() in [lane.thread for lane in lanes]:
        return  # a library that forks to report would wait for itself
    for lane in lanes:
        lane.wait_for_fork()


def _after_fork() -> None:
    """In the child there is no thread: a run of its own begins with lanes of its own."""
    global _keeper, _making
    _lanes.clear()
    _keeper, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
