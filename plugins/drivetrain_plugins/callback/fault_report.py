"""A fault and the frames before it, as a table: in colour on a terminal, plain anywhere else."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drivetrain_plugins.callback.frames import Frame, module
from drivetrain_plugins.callback.magnitudes import Magnitude
from drivetrain_plugins.callback.progress import is_terminal

_WIDE = 80  # columns from which shapes are shown
_FILE = 110  # columns of a file, and of a log


def show(title: str, frames: Sequence[Frame], fault: Magnitude | None, file: Path | None) -> None:
    """Prints the frames on stderr, and writes them into a file.

    Args:
        title: what is said above them.
        frames: the oldest first.
        fault: the tensor that is marked.
        file: where they are written as well.
    """
    terminal = is_terminal(sys.stderr)
    console = Console(
        file=sys.stderr,
        width=None if terminal or "COLUMNS" in os.environ else _FILE,
        force_terminal=terminal,
        force_jupyter=False,
        highlight=False,
        no_color=not terminal,
    )
    with console.capture() as captured:  # written at once, so that ranks do not write into each other's
        _print(console, title, frames, fault)
    sys.stderr.write(captured.get())
    sys.stderr.flush()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        plain = io.StringIO()
        _print(Console(file=plain, width=_FILE, no_color=True, highlight=False), title, frames, fault)
        text = "".join(f"{line.rstrip()}\n" for line in plain.getvalue().splitlines())
        file.write_text(text, encoding="utf-8")


def _print(console: Console, title: str, frames: Iterable[Frame], fault: Magnitude | None) -> None:
    wide = console.width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("abs min", justify="right", no_wrap=True)
    table.add_column("abs max", justify="right", no_wrap=True)
    table.add_column("of", overflow="fold")
    if wide:
        table.add_column("shape", no_wrap=True)
        table.add_column("dtype", no_wrap=True)
    rest = [""] * (2 * wide)
    before: tuple[int, bool] | None = None
    for frame in frames:
        now = (frame.batch, frame.backward)
        if now != before:
            word = "backward" if frame.backward else "forward"
            table.add_row("", "", Text(f"micro-batch {frame.batch}, {word}", style="cyan"), *rest)
            before = now
        if not frame.backward:
            table.add_row("", "", Text(frame.title, style="bold"), *rest)
        for magnitude in frame.magnitudes:
            named = f"  {magnitude.name}"
            if frame.backward:
                named = f"{magnitude.name}, {_of(frame)}"
            row = [number(magnitude.smallest), number(magnitude.largest), named]
            row += [magnitude.shape, magnitude.dtype] if wide else []
            marked = "bold red" if magnitude is fault else ""
            table.add_row(*(Text(cell, style=marked) for cell in row))
            if magnitude is fault:
                table.add_row("", "", Text("^ here it began", style=marked), *rest)
    console.print(Text(title, style="bold red" if fault is not None else "bold"))
    console.print(table)


def _of(frame: Frame) -> str:
    """Whose gradient it is."""
    if frame.kind:
        return frame.title
    users = dict.fromkeys(f"{name} of {module(path, kind)}" for path, kind, name in frame.users)
    return " and ".join(users)


def number(value: float) -> str:
    """Three digits, as in 1.23e-07; nan and inf by their names."""
    return f"{value:.2e}"
