"""Rows of the log in a file that spreadsheets read."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.files import log_file, staying
from drivetrain_plugins.logger.options import FileOptions

_FIRST = ["step", "epoch"]


class CsvLogger(Logger):
    """A line a row, a column a name of the log, after `step` and `epoch`. Each line is in the file when it is written.

    A name that comes up later is a column more: the file is written anew, and put in the place of the other.
    """

    name = "csv"
    options: FileOptions
    _file: Any = None

    def open(self, facts: Facts) -> None:
        """Opens the file, with the rows that stay."""
        self._path = log_file(self.options, facts, "log.csv")
        rows = staying(_rows(self._path), lambda row: int(row["step"]), facts)
        self._columns = list(rows[0]) if rows else list(_FIRST)
        self._write_anew(rows)

    def _write_anew(self, rows: list[dict[str, Any]]) -> None:
        beside = f"{self._path}.new"
        with open(beside, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        if self._file is not None:
            self._file.close()
        os.replace(beside, self._path)
        self._file = open(self._path, "a", encoding="utf-8", newline="")  # noqa: SIM115  # `close` closes it

    def write(self, row: Row) -> None:
        """Writes a line."""
        values = {"step": row.step, "epoch": row.epoch, **row.values}
        if new := [name for name in values if name not in self._columns]:
            self._columns += new
            self._write_anew(_rows(self._path))
        line = io.StringIO()
        csv.DictWriter(line, self._columns).writerow(values)
        self._file.write(line.getvalue())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._file = None


def _rows(path: str) -> list[dict[str, Any]]:
    """The rows of a file, if it is there; a run that was killed may have left half of one."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit()]
    except FileNotFoundError:
        return []
