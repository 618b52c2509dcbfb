"""The bar on a terminal. Its own thread reads what it shows, so that a step pays nothing for it."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from drivetrain_plugins.callback.rows import Cell, duration, lines, number, speed

REFRESH = 0.25  # seconds between two looks at the run; a look takes one to three milliseconds
WINDOW = 60  # looks over which the speed is measured
ONE_LINE = 100  # columns from which bar and figures share a line
TIME = 12  # columns of the time left


class Clock:
    """The speed of a counter over the last looks at it. Time between `pause` and `resume` does not count."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._lost = 0.0
        self._paused_at: float | None = None

    def pause(self) -> None:
        """Stops counting time."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Counts time again."""
        if self._paused_at is not None:
            self._lost += time.monotonic() - self._paused_at
            self._paused_at = None

    def look(self, count: int) -> None:
        """Notes where the counter stands."""
        if self._paused_at is None:
            self._looks.append((time.monotonic() - self._lost, count))

    def rate(self) -> float | None:
        """Counts a second, or None while too little has been seen."""
        if len(self._looks) < 2:
            return None
        (before, first), (now, last) = self._looks[0], self._looks[-1]
        return (last - first) / (now - before) if last > first and now > before else None


def _learning_rate(optimizer: Any) -> float | None:
    """The rate of the first group, where reading it makes no device wait."""
    try:
        rate = optimizer.param_groups[0]["lr"]
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
    return rate if isinstance(rate, (int, float)) else None


class Bar:
    """A live display of a run on one terminal.

    Attributes:
        predicting: whether an evaluation or a prediction is under way.
        predicted: its batches done; whoever predicts adds to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, force_terminal=True, force_jupyter=False, highlight=False)
        self.predicting = False
        self.predicted = 0
        self._state: Any = None
        self._optimizer: Any = None
        self._rows_per_step = 0
        self._began = time.monotonic()
        self._latest: dict[str, Any] = {}
        self._clock = Clock()
        self._prediction_clock = Clock()
        self._prediction_name = ""
        self._prediction_total: int | None = None
        self._waiting: deque[list[Cell]] = deque()
        self._printed_at = 0.0
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drivetrain-progress", daemon=True)
        self._live = Live(
            get_renderable=self._picture,
            console=self.console,
            auto_refresh=False,  # ours looks less often, and prints waiting rows in the same go
            redirect_stdout=bool(sys.stdout is not None and sys.stdout.isatty()),
            redirect_stderr=bool(sys.stderr is not None and sys.stderr.isatty()),
        )

    def start(self) -> None:
        """Puts the bar up."""
        self._live.start()
        self._thread.start()
        atexit.register(self.stop)  # an interpreter that ends on an error gives the cursor back

    def stop(self) -> None:
        """Shows the last state and gives the terminal back. May be called again."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        atexit.unregister(self.stop)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self._live.transient = self._state is None  # an evaluation by itself leaves nothing behind
        self._flush()
        self._live.stop()

    def watch_training(self, state: Any, optimizer: Any, rows_per_step: int) -> None:
        """Follows `state.global_step` from here to `state.max_steps`."""
        self._optimizer, self._rows_per_step = optimizer, rows_per_step
        self._began = time.monotonic()
        self._clock = Clock()
        self._clock.look(state.global_step)
        self._state = state

    def watch_prediction(self, name: str, batches: int | None) -> None:
        """Follows `predicted` up to `batches`, under a bar of its own."""
        self._prediction_name, self._prediction_total = name, batches
        self.predicted = 0
        self._prediction_clock = Clock()
        self._prediction_clock.look(0)
        self._clock.pause()
        self.predicting = True

    def forget_prediction(self) -> None:
        """Takes the prediction's bar away."""
        self.predicting = False
        self._clock.resume()

    def note(self, logs: Mapping[str, Any]) -> None:
        """Keeps what the bar shows of a row of the log."""
        for name in ("loss", "learning_rate"):
            if name in logs:
                self._latest[name] = logs[name]

    def print(self, shown: list[Cell]) -> None:
        """Prints a row above the bar: now, or with the next look where rows come thick and fast."""
        self._waiting.append(shown)
        if time.monotonic() - self._printed_at >= REFRESH:
            self._flush()

    def _watch(self) -> None:
        while not self._stopped.wait(REFRESH):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            rows: list[Text] = []
            while self._waiting:
                rows.extend(self._text(self._waiting.popleft()))
            self._printed_at = time.monotonic()
            if rows:
                self.console.print(Text("\n").join(rows))  # which draws the bar again below them
            else:
                self._live.refresh()

    def _text(self, shown: Sequence[Cell]) -> list[Text]:
        made: list[Text] = []
        for dealt in lines(shown, self.console.width):
            text = Text("    " if made else "", no_wrap=True, overflow="fold")
            for position, cell in enumerate(dealt):
                text.append("  " if position else "")
                if cell.name:
                    text.append(f"{cell.name} ", style="dim")
                text.append(cell.value, style="bold" if cell.name.endswith("loss") else "")
            made.append(text)
        return made

    def _picture(self) -> Text:
        """What the terminal shows now."""
        parts: list[Text] = []
        state = self._state
        if state is not None:
            step = state.global_step
            self._clock.look(step)
            rate = self._clock.rate()
            shown = self._figures(rate)
            time_shown = self._time(state.max_steps - step, rate)
            if self._stopped.is_set():
                time_shown = f"{duration(time.monotonic() - self._began)} in all"
            parts += self._line("Training", step, state.max_steps, shown, time_shown)
        if self.predicting:
            done = self.predicted
            self._prediction_clock.look(done)
            rate = self._prediction_clock.rate()
            total = self._prediction_total
            shown = [Cell("", f"{speed(rate)} batches/s")] if rate else []
            left = self._time(total - done if total is not None else None, rate)
            parts += self._line(self._prediction_name, done, total, shown, left)
        return Text("\n").join(parts)

    @staticmethod
    def _time(left: int | None, rate: float | None) -> str:
        return f"{duration(left / rate)} left" if left is not None and rate else ""

    def _figures(self, rate: float | None) -> list[Cell]:
        shown: list[Cell] = []
        if "loss" in self._latest:
            shown.append(Cell("loss", number(self._latest["loss"])))
        lr = _learning_rate(self._optimizer)
        lr = self._latest.get("learning_rate") if lr is None else lr
        if isinstance(lr, (int, float)):
            shown.append(Cell("lr", f"{lr:.2e}"))
        if rate:
            shown.append(Cell("", f"{speed(rate * self._rows_per_step)} rows/s"))
        return shown

    def _line(
        self, name: str, done: int, total: int | None, shown: Sequence[Cell], time_shown: str
    ) -> list[Text]:
        """A bar with its figures beside it, or below it where the terminal is narrow."""
        width = self.console.width
        count = f"{done}/{total}" if total is not None else f"{done}"
        figures = self._text(shown)[0] if shown else Text()
        wide = width >= ONE_LINE
        taken = len(f"{name:<10}") + len(count) + TIME + 3 + (figures.cell_len + 2 if wide else 0)
        line = Text(f"{name:<10} ", no_wrap=True, overflow="crop")
        line.append_text(_stroke(done, total, max(width - taken, 5)))
        line.append(f" {count}")
        if wide:
            line.append("  ").append_text(figures)
        line.append(f" {time_shown:>{TIME}}", style="cyan")
        if wide or not shown:
            return [line]
        return [line, Text(" " * 11, no_wrap=True, overflow="ellipsis").append_text(figures)]


def _stroke(done: int, total: int | None, width: int) -> Text:
    """A bar of `width` columns, drawn to half a column; empty where there is no telling how long."""
    halves = min(int(2 * width * done / total), 2 * width) if total else 0
    full, half = divmod(halves, 2)
    finished = total is not None and done >= total
    text = Text("━" * full + ("╸" if half else ""), style="green" if finished else "magenta")
    return text.append("━" * (width - full - half), style="bright_black")
