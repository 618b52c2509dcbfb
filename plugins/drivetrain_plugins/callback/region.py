"""The lower lines of a terminal, drawn again and again, while what is printed goes by above them.

Between two drawings the cursor rests, visible, on the empty line above them, at its start. So nothing has to be known
of how the terminal folds lines when its width changes; what another program or a C library writes begins on
a line of its own; and a process that is killed leaves no hidden cursor behind. Where a program at the end of a pipe may
write to the same terminal (`| tee`), it rests where that one has left it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

# While it moves, the cursor is hidden, and lines are not folded: for a moment the terminal may be narrower already than
# the system says it is.
BEGIN, END = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"
ERASE = "\x1b[J"  # from the cursor to the end of the screen
ERASE_LINE = "\x1b[K"  # from the cursor to the end of the line
KEEP, BACK = "\x1b7", "\x1b8"  # the place of the cursor
DOWN = "\x1bD"  # a line, in the same column; at the foot of the screen everything moves up
# Control sequences other than those of colours, which would move the cursor away.
MOVES = re.compile(r"\x1b\[[0-9;?]*[@-ln-~]|\x1b[()][A-Z0-9]|[\x00-\x06\x08\x0b-\x1a\x1c-\x1f\x7f]")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
DEBUGGERS = {"bdb", "cmd", "pdb", "IPython.core.debugger", "IPython.terminal.debugger"}


class Region:
    """Lines at the foot of a terminal.

    Args:
        stream: the terminal.
        draw: gives the lines to draw for so many columns, each ready to be written and no wider.
        before: called before a script's lines are written, for what waits to be printed before them.
    """

    def __init__(
        self, stream: TextIO, draw: Callable[[int], list[str]], before: Callable[[], None] = lambda: None
    ) -> None:
        self.stream = stream
        self.lock = threading.RLock()
        self._draw = draw
        self.before = before
        self._lines: list[str] = []  # what is on the screen, to be put there again below what is printed
        self._begun = ""  # a line that a script has begun; it is shown in the place of the empty line
        self._broken = False
        self._pid = os.getpid()
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._streams: list[tuple[str, Any, Above]] = []

    def open(self) -> None:
        """Leads standard output, standard error and the log's handlers that write to them through here."""
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            ours = _terminal_of(original) == _terminal_of(self.stream) is not None
            if ours or _is_a_pipe(original):
                above = Above(self, original, whole_lines=ours)
                self._streams.append((name, original, above))
                setattr(sys, name, above)
        known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
        for logger in known:
            for handler in getattr(logger, "handlers", ()):
                for _, original, above in self._streams:
                    if isinstance(handler, logging.StreamHandler) and handler.stream is original:
                        handler.setStream(above)
                        self._handlers.append((handler, original))

    def close(self, keep: bool) -> None:
        """Gives the streams back, and leaves the last drawing where it stands, or nothing."""
        with self.lock:
            for _, _, above in self._streams:
                above.finish()
            if keep:
                self.draw()
                self._write(f"\x1b[{len(self._lines)}B\n" if self._lines else "")
            else:
                self._write(ERASE)
            self._lines = []
            for handler, original in self._handlers:
                if isinstance(handler.stream, Above):
                    handler.setStream(original)
            for name, original, above in self._streams:
                if getattr(sys, name) is above:
                    setattr(sys, name, original)
            self._handlers, self._streams = [], []

    def draw(self) -> None:
        """Draws the lines anew."""
        with self.lock:
            for _, _, above in self._streams:
                if not above.whole_lines:
                    above.hand_on()  # what has not become a whole line since the last drawing
            if self._is_in_background() or is_debugged():
                if self._lines:
                    self._lines = []
                    self._write(ERASE)
                return
            columns, rows = self.size()
            self._lines = self._draw(columns)[: max(rows - 1, 0)]
            self._write(self._placed())

    def above(self, text: str) -> None:
        """Writes whole lines above the region, and the region below them again."""
        with self.lock:
            # At the end of a line, where another program has not ended its own yet, so many blanks go on in the next.
            fresh = " " * (self.size()[0] - 1) + "\r" + ERASE if self._is_shared() else ""
            self._write(ERASE + fresh + text + "\n" + self._placed())

    def clear(self) -> None:
        """Empties the screen below the cursor; the next drawing fills it. For what comes by another way."""
        with self.lock:
            self._write(ERASE)

    def begin(self, line: str) -> None:
        """Keeps a line that a script has begun, to be shown where the cursor rests."""
        self._begun = line

    def is_ours(self) -> bool:
        """Whether this process opened the region: a worker that was forked inherits it, and must not touch it."""
        return os.getpid() == self._pid

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal, by `COLUMNS` and `LINES` where they are set."""
        try:
            found = os.get_terminal_size(self.stream.fileno())
            columns, rows = found.columns, found.lines
        except (OSError, ValueError, AttributeError):
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def _placed(self) -> str:
        """The lines, below the one that a script has begun, and the cursor where it rests."""
        begun, columns = self._begun, self.size()[0]
        if cell_len(COLOURS.sub("", begun)) >= columns:
            begun = set_cell_size(COLOURS.sub("", begun), columns - 1)
        drawn = f"{ERASE_LINE}\n".join([begun, *self._lines])
        count = len(self._lines)
        up = f"\x1b[{count}A" if count else ""
        room, back = (DOWN * count + up + KEEP, BACK) if self._is_shared() else ("", "\r" + up)
        return f"{BEGIN}{room}{drawn}{ERASE}{back}{END}"

    def _is_shared(self) -> bool:
        """Whether a program at the end of a pipe may write here, whose line may come in two parts, the end alone.

        The cursor is put back behind the first part then, and not at the start of its line, which the next drawing
        would take for an empty one.
        """
        return any(not above.whole_lines for _, _, above in self._streams)

    def _is_in_background(self) -> bool:
        """Whether a shell has the terminal, as after `&`: what is drawn then would go over what its user types."""
        try:
            return os.tcgetpgrp(self.stream.fileno()) != os.getpgrp()
        except (OSError, ValueError, AttributeError):  # not the terminal that this process is controlled by
            return False

    def _write(self, text: str) -> None:
        if self._broken or not text:
            return
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "replace").decode(encoding))
            self.stream.flush()
        except (OSError, ValueError):  # the terminal is gone, which is no reason to end a run
            self._broken = True


class Above:
    """Takes the place of a stream while a region is open: what is written comes out above it.

    Args:
        region: the region.
        stream: the stream; everything but writing goes to it.
        whole_lines: for a terminal. Else the stream leads elsewhere, perhaps to the same terminal by a pipe
            (`| tee`), and the region only makes room.
    """

    def __init__(self, region: Region, stream: Any, whole_lines: bool) -> None:
        self._region = region
        self._stream = stream
        self.whole_lines = whole_lines
        self._pending = ""
        self._finished = False

    def write(self, text: str) -> int:
        """Writes; a line that is not finished waits, and is shown, until it is."""
        region = self._region
        if self._finished or not region.is_ours() or is_debugged():
            return int(self._stream.write(text))
        with region.lock:
            lines, newline, rest = (self._pending + text).rpartition("\n")
            if not self.whole_lines:
                # Each line in one piece, where Python writes at once: what a line is made of would come out in parts.
                self._pending = rest
                if newline:
                    region.clear()
                    self._stream.write(lines + newline)
                return len(text)
            # What a carriage return was to write over is gone, as it would be on the terminal.
            self._pending = rest
            if newline:
                region.before()
                region.begin("")
                region.above("\n".join(_overwritten(line) for line in lines.split("\n")))
            region.begin(_overwritten(rest).expandtabs())
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Shows what is written, and a line that is not finished too."""
        if self._pending and not self._finished and self._region.is_ours():
            if self.whole_lines:
                self._region.draw()
            else:
                self.hand_on()
        self._stream.flush()

    def hand_on(self) -> None:
        """Writes into a pipe what there is of a line."""
        with self._region.lock:
            pending, self._pending = self._pending, ""
            if pending:
                self._region.clear()
                self._stream.write(pending)

    def finish(self) -> None:
        """Writes what is left of a line, and from now on everything as it comes."""
        self._finished = True
        if not self.whole_lines:
            self.hand_on()
        elif self._pending:
            self._region.begin("")
            self._region.above(_overwritten(self._pending))
            self._pending = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_debugged() -> bool:
    """Whether somebody is typing into a debugger, so that the terminal is theirs."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals.get("__name__") in DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def _overwritten(line: str) -> str:
    """What a terminal shows of a line after its carriage returns, without what would move the cursor."""
    return MOVES.sub("", line.rstrip("\r").rpartition("\r")[2])


def _terminal_of(stream: Any) -> str | None:
    try:
        return os.ttyname(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _is_a_pipe(stream: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False
