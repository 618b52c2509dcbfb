"""The dearest operators of some profiled updates, as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drivetrain_plugins.callback.progress import is_terminal

_STEP = "ProfilerStep"


@dataclass(slots=True)
class _Operator:
    """What the calls of one operator took, in microseconds without what they called, and bytes."""

    calls: int = 0
    host: float = 0.0
    device: float = 0.0
    memory: int = 0


class Operators:
    """Sums over windows.

    Attributes:
        updates: that were profiled.
    """

    def __init__(self) -> None:
        self.updates = 0
        self._found: dict[str, _Operator] = {}

    def add(self, averages: Iterable[Any], updates: int) -> None:
        """Adds what torch's profiler gives for a window."""
        self.updates += updates
        for entry in averages:
            if entry.key.startswith(_STEP):
                continue
            found = self._found.setdefault(entry.key, _Operator())
            found.calls += entry.count
            found.host += entry.self_cpu_time_total
            found.device += entry.self_device_time_total
            found.memory += max(0, entry.self_cpu_memory_usage) + max(0, entry.self_device_memory_usage)

    def show(self, top: int, trace: str) -> None:
        """Prints the dearest, by the device's time where there is one, and where the trace is."""
        terminal = is_terminal(sys.stdout)
        console = Console(
            file=sys.stdout,
            force_terminal=terminal,
            force_jupyter=False,
            highlight=False,
            no_color=not terminal,
        )
        on_device = any(found.device for found in self._found.values())
        took = {name: found.device if on_device else found.host for name, found in self._found.items()}
        total = sum(took.values()) or 1.0
        with_memory = any(found.memory for found in self._found.values())
        names = sorted(took, key=took.__getitem__, reverse=True)[:top]
        columns = {
            "operator": names,
            "calls": [f"{self._found[name].calls / self.updates:,.0f}" for name in names],
            "time": [milliseconds(took[name] / self.updates) for name in names],
            "share": [f"{took[name] / total:.1%}" for name in names],
        }
        if with_memory:
            columns["allocated"] = [megabytes(self._found[name].memory / self.updates) for name in names]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for title, cells in columns.items():
            if title == "operator":  # a long name gives way, a number does not
                table.add_column(title, overflow="ellipsis", no_wrap=True)
            else:
                table.add_column(
                    title, justify="right", no_wrap=True, min_width=max(map(len, (title, *cells)))
                )
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        of = "device" if on_device else "host"
        title = f"The dearest operators of an update, by their own time on the {of}; mean of {self.updates} updates."
        console.print(Text(title, style="bold"))
        console.print(table)
        console.print(Text(f"The trace, for ui.perfetto.dev or chrome://tracing: {trace}"), soft_wrap=True)


def milliseconds(microseconds: float) -> str:
    """`12.3 ms`, `0.045 ms`."""
    value = microseconds / 1000
    return f"{value:,.1f} ms" if value >= 10 else f"{value:.3f} ms"


def megabytes(size: float) -> str:
    """`12.3 MB`."""
    return f"{size / 2**20:,.1f} MB"
