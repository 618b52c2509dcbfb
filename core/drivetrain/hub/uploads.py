"""Uploads beside training: one after another, in a thread that nothing waits for until the run is over.

An upload that fails is owed: it is tried again as soon as another has gone well, and at the end. One that is owed is
forgotten when a later one takes its place at the hub.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from drivetrain.errors import HubError
from drivetrain.hub.parcel import Parcel
from drivetrain.secret import struck

logger = logging.getLogger("drivetrain")

PAUSES = (1.0, 5.0, 15.0)
"""Seconds before each of the attempts that the end of a run makes at what is owed."""
SLOWEST = 1_000_000
"""Bytes a second: an upload that has taken longer than its files at this rate, and some patience, is given up."""
MOST_HELD = 8
"""Uploads that are kept for later; beyond, the oldest is dropped, so that a hub that is away does not fill the disk."""


@dataclass(eq=False, slots=True)
class Job:
    """One upload.

    Attributes:
        what: is sent, in words: "the model of step 12".
        place: where in the repository; a later job for it takes an earlier one's place.
        message: of the upload.
        path: the folder in the repository; empty for its root.
        replaces: see `Upload`.
        parcel: the files.
        command: the words behind `drivetrain push RUN` that send it.
        source: the checkpoint that it is of; empty where it is the output folder.
        future: the outcome of the first attempt.
        error: why it is owed; None while nothing has gone wrong.
        late: attempts at the end of the run.
    """

    what: str
    place: str
    message: str
    parcel: Parcel
    command: str
    path: str = ""
    replaces: tuple[str, ...] = ()
    source: str = ""
    future: Future[Any] = field(default_factory=Future)
    error: Exception | None = None
    late: int = 0

    @property
    def may_go_well(self) -> bool:
        """Whether there is sense in another attempt."""
        return not isinstance(self.error, HubError) or self.error.temporary


class Uploads:
    """The uploads of a run. As `trainer.push_in_progress` it has what scripts ask of that.

    Args:
        send: sends one, however long it takes; called in the thread.
        patience: seconds that may pass at the end of a run without an upload coming to its end, beside those that its
            files take at a slow rate.
        at_exit: called at the end of the process, when there is nothing left to wait for.

    Attributes:
        gave_up: whether the hub has been found to stand still.
        waits_at_exit: whether the end of the process waits for what is under way.
    """

    def __init__(
        self, send: Callable[[Job], Any], patience: Callable[[], float], at_exit: Callable[[], object]
    ) -> None:
        self._send, self._patience, self.at_exit = send, patience, at_exit
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._owed: list[Job] = []
        self._dropped: list[Job] = []
        self._current: Job | None = None
        self._since = 0.0
        self._worker: threading.Thread | None = None
        self._warned = False
        self.gave_up = False
        self.waits_at_exit = True

    # -- what scripts know ------------------------------------------------------------------------------

    @property
    def jobs(self) -> list[Future[Any]]:
        """The uploads that have not come to an end."""
        with self._changed:
            return [job.future for job in (self._current, *self._waiting) if job is not None]

    def is_done(self) -> bool:
        """Whether none is under way or waits."""
        return not self.jobs

    def wait_until_done(self) -> None:
        """Waits until all have been sent, or given up."""
        while not self.settle(60):
            pass

    # -- the queue ----------------------------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """Has a job sent after those that wait."""
        if self.waits_at_exit:
            _wait_at_exit(self)
        with self._changed:
            self._forget(old for old in self._owed if old.place == job.place)
            self._waiting.append(job)
            while len(self._waiting) + len(self._owed) > MOST_HELD:
                oldest = self._owed.pop(0) if self._owed else self._waiting.popleft()
                self._let_go(oldest, oldest.error or HubError("too many others waited for the hub as well"))
                self._dropped.append(oldest)
            self._start()

    def missing(self) -> list[Job]:
        """What is not at the hub, and is not being sent."""
        with self._changed:
            return [*self._dropped, *self._owed]

    def pending(self) -> list[Job]:
        """What is not at the hub yet."""
        with self._changed:
            current = () if self._current is None else (self._current,)
            return [*self._dropped, *self._owed, *current, *self._waiting]

    def forget(self, places: Iterable[str] | None = None) -> None:
        """Drops what is owed: all of it, or what belongs to these places."""
        wanted = None if places is None else set(places)
        with self._changed:
            self._forget(job for job in self._owed if wanted is None or job.place in wanted)
            self._dropped = [job for job in self._dropped if wanted is not None and job.place not in wanted]

    def settle(self, seconds: float) -> bool:
        """Waits, and has what is owed tried again.

        Args:
            seconds: at most; the caller may have others to attend to.

        Returns:
            Whether there is nothing left to wait for: all has been sent, or tried often enough, or stands still.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                now = time.monotonic()
                if self._current is None and not self._waiting:
                    again = [job for job in self._owed if job.may_go_well and job.late < len(PAUSES)]
                    if not again:
                        return True
                    until = self._since + PAUSES[min(job.late for job in again)]
                    if now >= until:
                        self._try_again(again)
                        continue
                else:
                    size = self._current.parcel.size if self._current is not None else 0
                    until = self._since + self._patience() + size / SLOWEST
                    if now >= until:
                        self._give_up(until - self._since)
                        return True
                if now >= end:
                    return False
                self._changed.wait(min(until, end) - now)

    def _try_again(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.late += 1
            self._owed.remove(job)
            self._waiting.append(job)
        self._start()

    def _give_up(self, seconds: float) -> None:
        """Leaves the thread, which the hub holds, to itself; whatever it does is not counted any more."""
        self.gave_up, self._worker = True, None
        still = HubError(f"the hub has not taken it in {seconds:.0f} s", temporary=True)
        jobs = [job for job in (self._current, *self._waiting) if job is not None]
        self._current = None
        self._waiting.clear()
        for job in jobs:
            self._let_go(job, still)
        self._owed += jobs

    def _let_go(self, job: Job, error: Exception) -> None:
        job.error = error
        job.parcel.close()
        if not job.future.done():
            job.future.set_exception(error)

    def _forget(self, jobs: Iterable[Job]) -> None:
        for job in list(jobs):
            self._owed.remove(job)
            self._let_go(job, job.error or HubError("another took its place"))

    # -- the thread -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._worker is None:
            # Nothing is lost when the process ends in the midst: a hub shows an upload whole or not at all.
            self._worker = threading.Thread(target=self._work, name="drivetrain-hub", daemon=True)
            self._since = time.monotonic()
            self._worker.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                if self._worker is not me:
                    return
                if not self._waiting:
                    self._worker = None
                    return
                job = self._current = self._waiting.popleft()
                self._since = time.monotonic()
            result, error = None, None
            try:
                result = self._send(job)
            except Exception as failed:
                error = failed
            with self._changed:
                if self._worker is not me:
                    return
                self._current, self._since = None, time.monotonic()
                if error is None:
                    self._sent(job)
                else:
                    self._failed(job, error)
                self._changed.notify_all()
            if error is None:
                if not job.future.done():
                    job.future.set_result(result)
                logger.info("%s is at the hub: %s", job.what.capitalize(), struck(str(result)))

    def _sent(self, job: Job) -> None:
        job.parcel.close()
        job.error, self._warned, self.gave_up = None, False, False
        again = [owed for owed in self._owed if owed.may_go_well and owed.late == 0]
        for owed in again:
            self._owed.remove(owed)
            self._waiting.append(owed)

    def _failed(self, job: Job, error: Exception) -> None:
        job.error = error
        if any(later.place == job.place for later in self._waiting):
            self._let_go(job, error)
            return
        self._owed.append(job)
        if not job.future.done():
            job.future.set_exception(error)
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s did not reach the hub: %s. The run goes on.", job.what.capitalize(), reason_of(error)
            )


def reason_of(error: Exception) -> str:
    """An error of a hub as the end of a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, HubError):
        return text
    return struck(f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__)


_waited_for: weakref.WeakSet[Uploads] = weakref.WeakSet()


def _wait_at_exit(uploads: Uploads) -> None:
    """Has the end of the process wait for what is under way, as long as `settle` would."""
    if not _waited_for:
        # While threads can still be started, which a client may do to send a file: `atexit` comes later.
        getattr(threading, "_register_atexit", atexit.register)(_at_exit)
    _waited_for.add(uploads)


def _at_exit() -> None:
    for uploads in list(_waited_for):
        if uploads.waits_at_exit:
            uploads.wait_until_done()
            uploads.at_exit()
        uploads.forget()
