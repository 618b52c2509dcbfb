"""Every row of the log as a table: for a spreadsheet, or another program."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivetrain.record import Named, Recorded

_FIRST = ("run", "step", "seconds")


class Csv:
    """Writes the table: a row for each of the log, a column for each quantity, nothing left out."""

    def write(self, runs: Sequence[Named], path: Path) -> None:
        """Writes all rows of these runs, one run after the other.

        Args:
            runs: in their order.
            path: of the file.
        """
        names = dict.fromkeys(name for found in runs for row in found.run.logs for name in _flat(row))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*_FIRST, *names])
            writer.writeheader()
            for name, run in runs:
                for row in run.logs:
                    writer.writerow({"run": name, "step": row.get("step"), **_since(run, row), **_flat(row)})


def _since(run: Recorded, row: dict[str, Any]) -> dict[str, Any]:
    if run.began is None or row.get("time") is None:
        return {}
    return {"seconds": f"{row['time'] - run.began:.3f}"}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    found = dict(row["logs"])
    for group in ("figures", "memory"):
        found.update({f"{group}/{name}": value for name, value in row.get(group, {}).items()})
    found.update({f"seconds/{name}": value for name, value in row.get("seconds", {}).items()})
    return found
