"""Rows of the log in a file of JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.files import log_file, staying
from drivetrain_plugins.logger.options import FileOptions


class JsonlLogger(Logger):
    """A line a row: an object with the log's own names, and `step`. Each line is in the file when it is written."""

    name = "jsonl"
    options: FileOptions
    _file: Any

    def open(self, facts: Facts) -> None:
        """Opens the file, with the rows that stay, and writes the configuration beside it."""
        path = log_file(self.options, facts, "log.jsonl")
        kept = staying(list(_lines(path)), lambda line: int(json.loads(line).get("step", 0)), facts)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.writelines(kept)
        os.replace(f"{path}.new", path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # `close` closes it
        with open(f"{os.path.splitext(path)[0]}.config.json", "w", encoding="utf-8") as file:
            file.write(json.dumps({"run_name": facts.name, **facts.configuration}, indent=2) + "\n")

    def write(self, row: Row) -> None:
        """Writes a line. NaN and infinity are the words that Python's own reader takes."""
        self._file.write(json.dumps({**row.values, "step": row.step}, default=_text) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _lines(path: str) -> Iterator[str]:
    """The whole lines of a file, if it is there; a run that was killed may have left half of one."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError, AttributeError):
                json.loads(line).get("step")
                yield line if line.endswith("\n") else f"{line}\n"


def _text(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
