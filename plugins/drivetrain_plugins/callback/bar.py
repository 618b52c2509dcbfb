"""The display on a terminal. Its own thread looks at the run, so that a step pays nothing for it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from drivetrain_plugins.callback.region import Above, Region
from drivetrain_plugins.callback.rows import Cell, cells, lines
from drivetrain_plugins.callback.standing import Figure, Standing, Track

REFRESH = 0.25  # seconds between two looks at the run
WIDEST = 120  # columns that the display takes at most
NARROW = 90  # columns below which the epoch moves from the bar's line to the figures
NAME = 10  # columns of "Evaluation", "Prediction", "Training"
BESIDE, TIME = 15, 13  # columns of "1,234 batches/s", and of "1:23:45 left", at the least
CURVE = 20  # columns of a curve at most
SHORTEST_CURVE = 6

STYLES = {
    "dim": Style(dim=True),
    "bold": Style(bold=True),
    "bar": Style(color="cyan"),
    "good": Style(color="green"),
    "bad": Style(color="red", bold=True),
    "rest": Style(color="bright_black"),
}

Piece = tuple[str, str]  # text, and the name of its style; "" is none


class Bar:
    """A display of a run at the foot of one terminal.

    Attributes:
        standing: what it shows.
    """

    active: Bar | None = None  # one at a time: the terminal has one foot

    def __init__(self, stream: TextIO) -> None:
        self.standing = Standing()
        console = Console(file=stream, force_terminal=True, force_jupyter=False)
        system = ColorSystem.STANDARD if console.color_system else None
        self._codes: dict[str, list[str]] = {}  # what goes before and after a text, by the name of its style
        for name, style in STYLES.items():
            chosen = style.without_color if console.no_color else style
            self._codes[name] = chosen.render("|", color_system=system).split("|")
        self._unicode = has_unicode(stream)
        self._widths: dict[str, int] = {}  # the widest that each figure has been, so that none jumps
        self._waiting: deque[tuple[dict[str, Any], int, int]] = deque()
        self._region = Region(stream, self._drawn, self._flush)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drivetrain-progress", daemon=True)

    def start(self) -> None:
        """Puts the display up."""
        Bar.active = self
        self._region.open()
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Leaves the last state, or nothing where nothing was trained, and gives the terminal back.

        May be called again.
        """
        if self._stopped.is_set():
            return
        self._stopped.set()
        atexit.unregister(self.stop)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self.standing.finish()
        self._widths.clear()  # nothing will jump any more
        self._flush()
        self._region.close(keep=self.standing.state is not None)
        Bar.active = None

    def row(self, logs: Mapping[str, Any], step: int, max_steps: int) -> bool:
        """Prints a row of the log above the display, with the next look.

        Returns:
            Whether it does: not where standard output leads elsewhere.
        """
        if not isinstance(sys.stdout, Above) or not sys.stdout.whole_lines:
            return False
        self._waiting.append((dict(logs), step, max_steps))
        return True

    def _watch(self) -> None:
        while not self._stopped.wait(REFRESH):
            self._flush()
            self._region.draw()

    def _flush(self) -> None:
        with self._region.lock:
            rows: list[str] = []
            columns = self._region.size()[0]
            while self._waiting:
                rows += self._row(cells(*self._waiting.popleft()), columns)
            if rows:
                self._region.above("\n".join(rows))

    # -- what is drawn ---------------------------------------------------------------------------------

    def _row(self, shown: Sequence[Cell], columns: int) -> list[str]:
        made: list[str] = []
        for dealt in lines(shown, columns - 1, measure=cell_len):
            pieces: list[Piece] = [("    ", "")] if made else []
            for position, cell in enumerate(dealt):
                pieces.append(("  " if position else "", ""))
                if cell.name:
                    pieces.append((f"{cell.name} ", "dim"))
                pieces.append((cell.value, "bold" if cell.name.endswith("loss") else ""))
            made.append(self._painted(pieces))
        return made

    def _drawn(self, columns: int) -> list[str]:
        """The display for a terminal of so many columns."""
        width = min(columns - 1, WIDEST)
        tracks = self.standing.tracks()
        for _ in range(2):  # the second time all of them know the widest
            drawn = [self._track(track, width) for track in tracks]
        made = drawn[:1]
        groups: list[list[list[Piece]]] = []
        for group in self.standing.figures():
            groups.append([self._figure(figure, width) for figure in group])
        if groups and width < NARROW and tracks[0].beside:
            groups[min(1, len(groups) - 1)].insert(0, [(self._steady("epoch", tracks[0].beside), "")])
        made += [self._painted(pieces) for pieces in _dealt(groups, width)]
        return made + drawn[1:]

    def _track(self, track: Track, width: int) -> str:
        done, total = track.done, track.total
        count = f"{done:,}" if total is None else f"{done:>{len(f'{total:,}')},}/{total:,}"
        share = "" if not total else f" {min(done / total, 1):4.0%}"
        beside = ""
        if width >= NARROW:
            beside = "  " + self._steady("beside", track.beside, at_least=BESIDE)
        time = self._steady("time", track.time, at_least=TIME, right=True)
        after = f" {self._steady('count', count + share, right=True)}{beside} "
        room = width - NAME - 1 - cell_len(after) - cell_len(time)
        stroke = self._stroke(done, total, max(room, 0)) if room >= 4 else []
        shown: list[Piece] = [(f"{track.name:<{NAME}} ", ""), *stroke, (after, ""), (time, "dim")]
        return self._painted(_cut(shown, width))

    def _stroke(self, done: int, total: int | None, width: int) -> list[Piece]:
        """A bar, drawn to half a column where it can be; empty where there is no telling how long."""
        full, half, rest = ("━", "╸", "━") if self._unicode else ("#", "", ".")
        halves = min(int(2 * width * done / total), 2 * width) if total else 0
        length, odd = divmod(halves, 2)
        filled = full * length + (half if odd else "")
        finished = total is not None and done >= total
        return [(filled, "good" if finished else "bar"), (rest * (width - len(filled)), "rest")]

    def _figure(self, figure: Figure, width: int) -> list[Piece]:
        if not figure.name:
            return [(self._steady(figure.value.rpartition(" ")[2], figure.value, right=True), figure.mood)]
        pieces: list[Piece] = [(f"{figure.name} ", "dim")]
        shown = self._steady(figure.name, figure.value)
        style = figure.mood or ("bold" if figure.curve is not None else "")
        pieces += [(figure.value, style), (" " * (cell_len(shown) - cell_len(figure.value)), "")]
        if figure.curve is not None and self._unicode:
            room = CURVE if width >= 76 else width - 48  # of a narrow line, what loss, rate and norm leave
            if room >= SHORTEST_CURVE:
                drawn = figure.curve.drawn(room)
                pieces.append((f" {drawn}" if drawn else "", "bar"))
                pieces.append((" " * (0 if self._stopped.is_set() else room - len(drawn)), ""))
        return pieces

    def _steady(self, key: str, text: str, at_least: int = 0, right: bool = False) -> str:
        """The text in as many columns as it, or another of its kind, has ever had."""
        widest = self._widths[key] = max(self._widths.get(key, at_least), cell_len(text))
        space = " " * (widest - cell_len(text))
        return space + text if right else text + space

    def _painted(self, pieces: Sequence[Piece]) -> str:
        painted: list[str] = []
        for text, name in pieces:
            if name and text:
                before, after = self._codes[name]
                painted += (before, text, after)
            else:
                painted.append(text)
        return "".join(painted).rstrip()


def has_unicode(stream: TextIO) -> bool:
    """Whether blocks and strokes can be shown: by the stream's encoding, and by the locale.

    Python takes UTF-8 for the C locale, and says so in `LC_CTYPE`; whoever sets C means a terminal that has it not.
    """
    try:
        "━╸▁█".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    put_there_by_python = os.environ.get("LC_CTYPE", "") in ("C.UTF-8", "C.utf8", "UTF-8")
    ctype = "" if put_there_by_python else os.environ.get("LC_CTYPE", "")
    return (os.environ.get("LC_ALL") or ctype or os.environ.get("LANG", "")) not in ("C", "POSIX")


def _dealt(groups: Sequence[Sequence[Sequence[Piece]]], width: int) -> list[list[Piece]]:
    """Figures dealt out over lines: a group begins a new line, unless all of it fits on the one before."""
    made: list[list[Piece]] = []
    used = 0
    for group in groups:
        whole = sum(2 + _length(figure) for figure in group)
        if made and used + 1 + whole > width:
            used = 0
        elif made:
            made[-1].append((" ", ""))
            used += 1
        for position, figure in enumerate(group):
            length = _length(figure)
            if not made or used == 0 or (position and used + 2 + length > width):
                made.append([])
                used = 0
            if used:
                made[-1].append(("  ", ""))
                used += 2
            made[-1].extend(figure)
            used += length
    return [_cut(pieces, width) for pieces in made]


def _length(pieces: Sequence[Piece]) -> int:
    return sum(cell_len(text) for text, _ in pieces)


def _cut(pieces: Sequence[Piece], width: int) -> list[Piece]:
    """What of a line fits."""
    made: list[Piece] = []
    for text, style in pieces:
        room = width - _length(made)
        if room <= 0:
            break
        made.append((text if cell_len(text) <= room else set_cell_size(text, room), style))
    return made
