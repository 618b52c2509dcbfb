"""A real pseudo-terminal whose screen a test can read: what is written to it goes through a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import pyte

LIMIT = 240.0  # seconds for what takes a few


class Terminal:
    """A terminal of so many columns and rows, with its history.

    Attributes:
        written: every byte that came.
        stream: the terminal, to be written to in this process.
    """

    def __init__(
        self, columns: int, rows: int = 40, screen: type[pyte.HistoryScreen] = pyte.HistoryScreen
    ) -> None:
        self.screen = screen(columns, rows, history=2000, ratio=1)
        self._emulator = pyte.ByteStream(self.screen)
        self.written = b""
        self._lock = threading.Lock()
        self._reader, self.writer = pty.openpty()
        self.stream: TextIO = os.fdopen(os.dup(self.writer), "w", encoding="utf-8")
        self._tell(columns, rows)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def resize(self, columns: int, rows: int) -> None:
        """As if somebody drew the window larger or smaller: first the lines change, then the program is told."""
        with self._lock:
            self.screen.resize(rows, columns)
        self._tell(columns, rows)

    def lines(self) -> list[str]:
        """What stands there, with what has gone by above."""
        with self._lock:
            gone = [
                "".join(line[at].data for at in range(self.screen.columns))
                for line in self.screen.history.top
            ]
            return [line.rstrip() for line in [*gone, *self.screen.display]]

    def text(self) -> str:
        """The lines, without the empty ones at the end."""
        return "\n".join(self.lines()).rstrip("\n")

    def wait_for(self, condition: Callable[[str], Any]) -> str:
        """Waits until the text fulfils a condition, and returns it."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            text = self.text()
            if condition(text):
                return text
            time.sleep(0.02)
        raise AssertionError(f"It did not come. The terminal shows:\n{self.text()}")

    def run(self, command: list[str], env: dict[str, str], **more: Any) -> subprocess.Popen[bytes]:
        """Starts a program in the terminal, as the leader of a session that the terminal controls."""
        streams = {"stdin": self.writer, "stdout": self.writer, "stderr": self.writer, **more}
        return subprocess.Popen(command, env=env, preexec_fn=_take_terminal, **streams)

    def press(self, keys: bytes) -> None:
        """As if somebody typed."""
        os.write(self._reader, keys)

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Waits for a program and for all that it wrote, and returns its exit status."""
        try:
            status = process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        self.close()
        return status

    def close(self) -> None:
        """Reads what is left."""
        self.stream.close()
        os.close(self.writer)
        self._thread.join(timeout=LIMIT)
        os.close(self._reader)

    def _tell(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                select.select([self._reader], [], [])
                part = os.read(self._reader, 65536)
            except (OSError, ValueError):  # the other end is closed
                return
            if not part:
                return
            with self._lock:
                self.written += part
                self._emulator.feed(part)


def _take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
