"""The signals that ask a run to leave, heard while it trains."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

logger = logging.getLogger("drivetrain")

HEARD: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)
TOGETHER = 1.0
"""Seconds within which signals are one: `timeout` and some launchers send theirs to the process and to its group."""


class Signals:
    """Notes the first signal; a second one has its default action, which ends the process at once.

    A signal that has a handler already (the user's, faulthandler's, MPI's), or that is ignored, is left alone.
    Outside of the main thread Python hears no signals, and nothing is done.

    Args:
        says_so: whether a line tells at once that the signal was heard.

    Attributes:
        first: the signal that was heard first; None while there was none.
    """

    def __init__(self, says_so: bool) -> None:
        self.first: signal.Signals | None = None
        self._says_so = says_so
        self._at = 0.0
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Puts the handlers up."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HEARD:
            before = signal.getsignal(number)
            if (before is signal.SIG_DFL and not _is_caught(number)) or before is signal.default_int_handler:
                with contextlib.suppress(ValueError):  # an interpreter beside the main one
                    signal.signal(number, self._hear)
                    self._before[number] = before
            elif before is not signal.SIG_IGN and not isinstance(getattr(before, "__self__", None), Signals):
                logger.info("%s has another handler, so it does not write a checkpoint.", number.name)

    def restore(self) -> None:
        """Takes them down."""
        while self._before:
            number, before = self._before.popitem()
            if signal.getsignal(number) == self._hear:  # nobody has put up another one meanwhile
                signal.signal(number, before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork of this process, which has no run of its own
            if callable(before := self._before.get(signal.Signals(number))):
                before(number, frame)
            else:
                self._default(number)
        elif self.first is None:
            self.first, self._at = signal.Signals(number), time.monotonic()
            if self._says_so:
                # Not by a stream, in the middle of whose own work a handler may come.
                line = (
                    f"{self.first.name}: the run writes a checkpoint and leaves; once more ends it at once.\n"
                )
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
        elif time.monotonic() - self._at > TOGETHER:
            self._default(number)

    def _default(self, number: int) -> None:
        if number == signal.SIGINT and hasattr(sys, "ps1"):
            raise KeyboardInterrupt  # a notebook or a prompt lives on
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_caught(number: int) -> bool:
    """Whether a handler that Python does not know of hears a signal, such as one of faulthandler's."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
