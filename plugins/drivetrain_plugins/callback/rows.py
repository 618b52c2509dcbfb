"""A row of the log in words that fit a line: used by the bar, and by the plain lines without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A name and its value, as shown."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}" if self.name else self.value


# Figures of speed, which the documented rows hold in seconds and per second.
_SPEED = ("_runtime", "_samples_per_second", "_steps_per_second")


def duration(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`, `2d 03:04:05`."""
    if seconds != seconds or seconds < 0 or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: Any) -> str:
    """A number short enough to read, thousands grouped; anything else as it prints."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return " ".join(str(value).split())  # an array prints in lines
    if value != value:
        return "NaN"
    size = abs(value)
    if isinstance(value, int) or 1000 <= size < 1e15:
        return f"{value:,.0f}"
    if 0.001 <= size < 1000:
        return f"{value:.4f}" if size < 10 else f"{value:.2f}"
    return f"{value:.4g}"


def speed(value: float) -> str:
    """A number a second: three significant digits, whole ones grouped."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(
    logs: Mapping[str, Any], step: int, max_steps: int, figures: Mapping[str, float] | None = None
) -> list[Cell]:
    """A row of the log as cells: where the run is, what was measured, and how fast.

    Args:
        logs: the row, with the documented names.
        step: updates done.
        max_steps: updates of the run; 0 outside training.
        figures: `rows_per_second` and `seconds_left` of the run, for rows of training.
    """
    shown: list[Cell] = []
    if max_steps > 0:
        total = str(max_steps)
        shown.append(Cell("step", f"{step:>{len(total)}}/{total}"))
    if isinstance(logs.get("epoch"), (int, float)):
        shown.append(Cell("epoch", f"{logs['epoch']:.2f}"))
    prefix = next((key[: -len("_runtime")] for key in logs if key.endswith("_runtime")), None)
    for key, value in logs.items():
        if key == "learning_rate" and isinstance(value, float):
            shown.append(Cell("lr", f"{value:.2e}"))
        elif key not in ("epoch", "step", "total_flos") and not (prefix and key.endswith(_SPEED)):
            shown.append(Cell(key, number(value)))
    if prefix is not None:
        seconds = float(logs[f"{prefix}_runtime"])
        shown.append(Cell("", f"in {duration(seconds) if seconds >= 10 else f'{seconds:.2f} s'}"))
        if f"{prefix}_samples_per_second" in logs:
            shown.append(Cell("", f"{speed(logs[f'{prefix}_samples_per_second'])} rows/s"))
    elif figures:
        if "rows_per_second" in figures:
            shown.append(Cell("", f"{speed(figures['rows_per_second'])} rows/s"))
        if "seconds_left" in figures:
            shown.append(Cell("", f"{duration(figures['seconds_left'])} left"))
    return shown


def lines(
    shown: Sequence[Cell],
    width: int | None = None,
    indent: str = "    ",
    measure: Callable[[str], int] = len,
) -> list[list[Cell]]:
    """Deals cells out over as many lines as `width` columns ask for; one line where it is None.

    A line after the first has `indent` before it, which whoever prints adds. `measure` gives the columns of a text.
    """
    if width is None:
        return [list(shown)]
    dealt: list[list[Cell]] = [[]]
    used = 0
    for cell in shown:
        length = measure(str(cell))
        if dealt[-1] and used + 2 + length > width:
            dealt.append([])
            used = len(indent) - 2
        dealt[-1].append(cell)
        used += length + (2 if used else 0)
    return dealt


def say(line: str) -> None:
    """Prints a line, as far as that can be done: a terminal that has gone is no reason to end a run."""
    try:
        print(line, flush=True)
    except UnicodeEncodeError:
        print(line.encode("ascii", "backslashreplace").decode(), flush=True)
    except (OSError, ValueError):
        pass
