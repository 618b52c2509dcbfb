"""`drivetrain report`: what runs have recorded, as a page, a picture or a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivetrain import discover
from drivetrain.cli.console import say
from drivetrain.errors import ConfigurationError
from drivetrain.plugin import import_string
from drivetrain.record import Reading, names_of, read
from drivetrain.requirements import missing, needs


def write(folders: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Writes reports of runs, each in the form that its file's ending names.

    Raises:
        ConfigurationError: a folder holds no run, a form is not installed, or a file cannot be written.
    """
    forms = [(path, form(path.suffix.removeprefix("."))) for path in outputs]
    named = names_of([read(path) for path in folders])
    for path, found in forms:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found.write(named, path)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}.") from error
        say(f"{path}  ({_size(path.stat().st_size)})")


def serve(folders: Sequence[Path], port: int) -> None:
    """Shows runs in the browser, and goes on with them, until Ctrl-C.

    Raises:
        ConfigurationError: a folder holds no run, or the port is taken.
    """
    found = form("html")
    for path in folders:
        read(path)
    try:
        found.serve(
            [Reading(path) for path in folders], port, lambda address: say(f"{address}  (Ctrl-C ends it)")
        )
    except KeyboardInterrupt:
        return
    except OSError as error:
        raise ConfigurationError(
            f"Port {port} of this machine cannot be used: {error.strerror or error}. Choose another by --port, or 0 "
            "for any that is free."
        ) from error


def form(name: str) -> Any:
    """The plugin that writes a form of report.

    Raises:
        ConfigurationError: there is none of that name, or what it needs is not installed.
    """
    info = discover.load_info("report", name)
    if lacking := missing(info):
        raise ConfigurationError(f"Report {name!r} {needs(info, lacking)}")
    return import_string(info.implementation)()


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count // 1000, 1)} kB"
