"""What the commands print with: rich on a terminal, plain lines in a pipe.

Rich is imported at the first use, and only the parts that are used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drivetrain.cli.again import LEFT
from drivetrain.errors import ConfigurationError, DrivetrainError, Preempted, ProcessError, checkpoint_of

if TYPE_CHECKING:
    from rich.console import Console

Function = TypeVar("Function", bound=Callable[..., Any])
EXIT_CODES: dict[type[DrivetrainError], int] = {DrivetrainError: 2, ProcessError: 3}
"""What a command ends with: 3 where another process of the run failed and this one only lost it."""
INTERRUPTED = 130
"""By Ctrl-C, as in a shell. `Preempted` has a code of its own."""


@dataclass(slots=True)
class _State:
    traceback: bool = False


STATE = _State()


def console(stderr: bool = False) -> Console:
    """A console on the stream as it is now (tests put others in its place)."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def is_terminal() -> bool:
    """Whether standard output is a terminal, or the environment says to treat it as one."""
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def width() -> int:
    """Columns of the terminal; a pipe has no end."""
    return console().width if is_terminal() else 10_000


def say(text: str = "", style: str | None = None) -> None:
    """One line to standard output; styled on a terminal, never wrapped in a pipe."""
    if is_terminal():
        console().print(text, style=style, markup=False)
    else:
        print(text)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    styles: Sequence[str | None] = (),
    fixed: Sequence[int] = (),
    header: bool = True,
) -> None:
    """A table: boxed by rich on a terminal, columns two spaces apart and uncut in a pipe.

    Args:
        columns: headings.
        rows: cells; a cell may hold line breaks.
        title: a heading above.
        styles: rich styles by column.
        fixed: columns that are never folded.
        header: whether the headings are shown.
    """
    if not is_terminal():
        _plain(columns, rows, title, header)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if header else box.SIMPLE,
        show_header=header,
        header_style="dim",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, name in enumerate(columns):
        made.add_column(
            name,
            style=styles[index] if index < len(styles) else None,
            no_wrap=index in fixed,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    console().print(made)


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None, header: bool) -> None:
    if title:
        print(title)
    lines = [*([columns] if header else []), *rows]
    flat = [[cell.replace("\n", "; ") for cell in line] for line in lines]
    widths = [max(len(line[index]) for line in flat) for index in range(len(columns))] if flat else []
    for line in flat:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def complain(error: DrivetrainError) -> None:
    """The error, in one red line or a list, on standard error."""
    problems: tuple[str, ...] = error.problems if isinstance(error, ConfigurationError) else (str(error),)
    if len(problems) == 1:
        complain_line(f"Error: {problems[0]}")
        return
    complain_line(f"{len(problems)} problems were found before the run began:")
    for problem in problems:
        complain_line(f"  - {problem}")


def complain_line(line: str) -> None:
    """One line on standard error, red where that is a terminal."""
    if sys.stderr.isatty():
        console(stderr=True).print(line, style="red", markup=False)
    else:
        print(line, file=sys.stderr)


def _note_that_it_left(error: BaseException) -> None:
    """Leaves word for `--nproc`, whose launcher tells nobody how a process ended that it had itself told to end."""
    folder = os.environ.get(LEFT)
    if folder is not None and checkpoint_of(error) is not None:
        with contextlib.suppress(OSError):
            Path(folder, f"left-{os.environ.get('LOCAL_RANK')}").touch()


def clean_errors(function: Function) -> Function:
    """Ends a command whose error is ours with one sentence and an exit code, not with a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import typer

        try:
            return function(*args, **kwargs)
        except DrivetrainError as error:
            if STATE.traceback:
                raise
            from drivetrain import peers

            if LEFT in os.environ:
                # The launcher ends the others when the first has ended: one that was ended after it had spoken would
                # count as one that never spoke, and another would be heard with the same words.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            peers.failed(error)
            complain(error)
            raise typer.Exit(EXIT_CODES.get(type(error), EXIT_CODES[DrivetrainError])) from error
        except (KeyboardInterrupt, Preempted) as error:
            _note_that_it_left(error)
            if checkpoint_of(error) is None:
                complain_line("Stopped by SIGINT.")
            raise typer.Exit(error.EXIT_CODE if isinstance(error, Preempted) else INTERRUPTED) from error

    return wrapped  # type: ignore[return-value]  # the same signature, as functools.wraps says
