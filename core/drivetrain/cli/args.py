"""`drivetrain args`: a search over the training arguments."""

from __future__ import annotations

from drivetrain.arguments.parsing import Row, field_table
from drivetrain.cli.console import is_terminal, say, table, width
from drivetrain.errors import ConfigurationError, did_you_mean


def show(word: str | None) -> None:
    """Prints the arguments that a word matches: by name, choice, owner, topic or what they do.

    Raises:
        ConfigurationError: none matches; with the nearest name.
    """
    rows = field_table()
    if word is None:
        found = rows
    else:
        name = word.lstrip("-").replace("-", "_").lower()
        exact = [row for row in rows if row.name.lower() == name]
        found = exact or _matching(rows, word.lower(), name)
        if not found:
            near = did_you_mean(name, (row.name for row in rows))
            raise ConfigurationError(f"No argument has '{word}' in its name or in what it does.{near}")
        if len(found) == 1:
            _details(found[0])
            return
    columns = ("argument", "type", "default", "owner", "what it does")
    listed = [(row.name, row.type, row.default or "required", row.owner, row.help) for row in found]
    if width() < 110:  # five columns would fold to nothing
        narrow = [(row.name, f"{row.help}\n{_short(row)}") for row in found]
        table(("argument", "what it does"), narrow, styles=("cyan",))
    else:
        table(columns, listed, styles=("cyan", None, "green", "dim"), fixed=(0,))
    if is_terminal():
        say(f"{len(found)} argument{'s' if len(found) > 1 else ''}.", style="dim")


def _short(row: Row) -> str:
    return f"{row.type} · {row.default or 'required'} · {row.owner}"


def _matching(rows: list[Row], word: str, name: str) -> list[Row]:
    by_name = [row for row in rows if name in row.name.lower()]
    elsewhere = [
        row
        for row in rows
        if row not in by_name
        and any(word in text.lower() for text in (row.help, row.type, row.owner, row.topic))
    ]
    return by_name + elsewhere


def _details(row: Row) -> None:
    say(row.name, style="bold cyan")
    say(row.help)
    option = f"--{row.name.replace('_', '-')}"
    example = {"flag": option, "list": f"{option} A B", "value": f"{option} VALUE"}[row.shape]
    table(
        ("", ""),
        [
            ("type", row.type),
            ("default", row.default or "required"),
            ("owner", row.owner),
            ("topic", row.topic),
            ("command line", example),
            ("config", f"[training] {row.name} = ..."),
        ],
        styles=("dim",),
        fixed=(0,),
        header=False,
    )
