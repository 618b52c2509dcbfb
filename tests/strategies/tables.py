"""Tables for a terminal of any width, and the same as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass
class Grid:
    """A table.

    Attributes:
        title: above it.
        columns: their names; numbers stand to the right under a name that begins with ">".
        rows: of text; a cell that begins with "!" is a failure.
        note: below it.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def show(grid: Grid, console: Console) -> None:
    """Prints a table; what does not fit into the width is wrapped, never cut."""
    table = Table(title=grid.title, title_justify="left", title_style="bold", caption=grid.note or None)
    table.caption_justify = "left"
    for column in grid.columns:
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=column.startswith(">") or column == grid.columns[0],
        )
    for row in grid.rows:
        cells = [Text(cell.lstrip("!"), style="bold red" if cell.startswith("!") else "") for cell in row]
        table.add_row(*cells)
    console.print(table)
    console.print()


def markdown(grid: Grid) -> str:
    """The table as Markdown."""
    lines = [f"## {grid.title}", ""]
    lines.append("| " + " | ".join(column.lstrip(">") for column in grid.columns) + " |")
    lines.append("|" + "|".join("---:" if column.startswith(">") else "---" for column in grid.columns) + "|")
    for row in grid.rows:
        lines.append("| " + " | ".join(_cell(cell) for cell in row) + " |")
    if grid.note:
        lines += ["", grid.note]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    plain = " ".join(text.lstrip("!").replace("|", "/").split())
    return f"**{plain}**" if text.startswith("!") else plain
