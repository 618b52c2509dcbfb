"""What the processes tell each other beside their group: who has failed and why, and who has come to the end.

Each process keeps its connection to rank 0 from the meeting. A process that is killed says nothing, but the system
closes its connection, so that the others know which one it was; the backend's own errors name nobody.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from drivetrain_plugins.launcher.meeting import ranks

_LONGEST = 500  # characters of a reason
_SENT = 5.0  # seconds for a line to be taken
_HEARD = 3.0  # how long news may come after the backend's error
_AGAIN = 0.1  # between two looks at whether this process is to end


class News:
    """The connections of a process, and a thread that reads them.

    Args:
        rank, size: of this process.
        lines: on rank 0 one for each other rank, elsewhere one for rank 0.

    Attributes:
        in_haste: this process has been told to end, and no longer waits for the one that failed.
    """

    def __init__(self, rank: int, size: int, lines: dict[int, socket.socket]) -> None:
        self.rank, self.size = rank, size
        self.in_haste = False
        self._lines = dict(lines)
        self._unread = dict.fromkeys(lines, b"")
        self._failure: tuple[int, str] | None = None
        self._ended: set[int] = set()
        self._gone: set[int] = set()  # their connection is closed, as far as this rank knows
        self._told_own = False
        self._group = 0  # number of the process group of now
        self._left: dict[int, tuple[int, str]] = {}  # group -> the rank that left it first, and why
        self._changed = threading.Condition()
        self._on_failure: Callable[[], None] | None = None
        self._on_left: Callable[[], None] | None = None
        self._stop, self._stopped = socket.socketpair()
        for line in lines.values():
            line.settimeout(_SENT)
        self._thread = threading.Thread(target=self._listen, name="drivetrain-news", daemon=True)
        self._thread.start()

    # -- said by this process ------------------------------------------------------------------------

    def tell(self, reason: str) -> None:
        """Says that this rank fails, and why."""
        with self._changed:
            self._told_own = True
            self._send({"failed": [self.rank, reason[:_LONGEST]]})

    def tell_left(self, reason: str) -> None:
        """Says that this rank leaves the process group, and by which error; by want of memory where that is empty."""
        news = {"left": [self.rank, self._group, reason[:_LONGEST]]}
        with self._changed:
            self._hear(news)
            if self.rank != 0:
                self._send(news)

    def on_left(self, call: Callable[[], None]) -> None:
        """Lets `call` be called, in the thread that reads, when another rank leaves the process group of now."""
        with self._changed:
            self._on_left = call

    def left(self) -> tuple[int, str] | None:
        """The rank that left the process group of now first, and why; None where none has."""
        with self._changed:
            return self._left.get(self._group)

    def next_group(self) -> int:
        """Number of the next process group, which is that of now from here on."""
        with self._changed:
            self._group += 1
            return self._group

    def has_failed(self) -> bool:
        """Whether another rank is known to have failed, without waiting for news."""
        with self._changed:
            return self._failure is not None

    def on_failure(self, call: Callable[[], None]) -> None:
        """Lets `call` be called, in the thread that reads, when another rank has failed or ended before its time."""
        with self._changed:
            self._on_failure = call
            if self._failure is not None:
                call()

    def failure(self) -> str | None:
        """Which rank failed or ended first, and why, in a sentence; None where all are well as far as is known.

        Waits a little, since the backend may have been quicker.
        """
        end = time.monotonic() + _HEARD
        with self._changed:
            while not self._told() and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._failure is not None:
                rank, reason = self._failure
                if reason:
                    return f"Another process of this run has failed: rank {rank} by {reason}"
                return (
                    f"Another process of this run has ended: rank {rank}, without a word, as when it is killed or "
                    "finds no memory."
                )
            if self._group in self._left:
                return None
            if early := [rank for rank in sorted(self._ended) if rank != self.rank]:
                return (
                    f"Another process of this run has ended: {ranks(early)} came to the end of the script while this "
                    "one still trains."
                )
            return None

    def wait_for_all(self, seconds: float) -> list[int]:
        """Says that this rank has come to the end, and waits for the others.

        Returns:
            those who have not come, as far as this rank knows; empty where all have.
        """
        end = time.monotonic() + seconds
        with self._changed:
            self._note_end(self.rank)
            if self.rank != 0:
                self._send({"ended": [self.rank]})
            while self._missing() and self._failure is None and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._missing()

    def wait_for_failed(self, seconds: float) -> None:
        """Waits until the rank that failed first has gone; not where that is unknown, or this rank failed itself."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._follows() and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, _AGAIN))  # a signal's handler cannot notify

    def close(self, seconds: float, *, connected: bool = False) -> None:
        """Ends the connections; rank 0, who has what the others may still use, waits until they have gone.

        Args:
            seconds: to wait at most.
            connected: leaves the connections to the end of the process, by which the others then know it.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while self.rank == 0 and self._lines and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
        self._stop.close()
        self._thread.join(_SENT)
        for line in self._lines.values():
            if connected:
                line.detach()
            else:
                line.close()

    # -- heard from the others -----------------------------------------------------------------------

    def _listen(self) -> None:
        with selectors.DefaultSelector() as waiting, self._stopped:
            waiting.register(self._stopped, selectors.EVENT_READ, None)
            for rank, line in self._lines.items():
                waiting.register(line, selectors.EVENT_READ, rank)
            while True:
                for key, _ in waiting.select():
                    if key.data is None:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    if not self._read(key.data, key.fileobj):
                        waiting.unregister(key.fileobj)

    def _read(self, rank: int, line: socket.socket) -> bool:
        try:
            got = line.recv(1 << 16)
        except OSError:
            got = b""
        with self._changed:
            *whole, self._unread[rank] = (self._unread[rank] + got).split(b"\n")
            for text in whole:
                with contextlib.suppress(ValueError):
                    self._hear(json.loads(text))
            if not got:
                del self._lines[rank]
                line.close()
                if rank not in self._ended:
                    self._hear({"failed": [rank, ""]})
                self._hear({"gone": rank})
            self._changed.notify_all()
        return bool(got)

    def _hear(self, news: dict[str, Any]) -> None:
        if "failed" in news and self._failure is None:
            rank, reason = news["failed"]
            self._failure = int(rank), str(reason)
            if self.rank == 0:
                self._send(news)
            if self._on_failure is not None:
                self._on_failure()
        if "left" in news:
            rank, group, reason = news["left"]
            self._left.setdefault(int(group), (int(rank), str(reason)))
            if self.rank == 0:
                self._send(news)
            if self._on_left is not None and group == self._group and rank != self.rank:
                self._on_left()
        if "gone" in news:
            self._gone.add(news["gone"])
            if self.rank == 0 and self._failure is not None:
                self._send(news)
        for rank in news.get("ended", ()):
            self._note_end(rank)

    def _note_end(self, rank: int) -> None:
        self._ended.add(rank)
        if self.rank == 0 and (len(self._ended) == 1 or not self._missing()):
            self._send({"ended": sorted(self._ended)})

    def _told(self) -> bool:
        return self._failure is not None or self._group in self._left

    def _follows(self) -> bool:
        """Whether this rank ends because of another that has not ended yet, as far as it can still hear."""
        if self._failure is None or self._told_own or self.in_haste:
            return False
        return bool(self._lines) and self._failure[0] not in self._gone

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.size) if rank not in self._ended]

    def _send(self, news: dict[str, Any]) -> None:
        text = json.dumps(news).encode() + b"\n"
        for line in list(self._lines.values()):
            with contextlib.suppress(OSError):
                line.sendall(text)
