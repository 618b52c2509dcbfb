"""For the tests of loggers with the real libraries, which the session `loggers` of nox installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivetrain import Trainer
from support.logged import TOKEN, trainer


def library(name: str) -> Any:
    """The library of a tracker; without it the tests are skipped."""
    return pytest.importorskip(
        name, reason=f"{name} is not installed: nox -s loggers has it", exc_type=ImportError
    )


def logged(folder: Path, word: str, options: dict[str, Any] | None = None, **arguments: Any) -> Trainer:
    """A run that reports to one logger, with a token that must not be written, and with time for a slow machine."""
    given = dict(options or {})
    if word != "flyte":  # the run waits for it anyway
        given = {"open_timeout": 200.0, "close_timeout": 200.0, **given}
    return trainer(folder, word, plugins_options={word: given}, hub_token=TOKEN, **arguments)


def assert_no_token(folder: Path) -> None:
    """No file of a folder has the token."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
