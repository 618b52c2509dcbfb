"""The record of a run, as it is read: `drivetrain-record.jsonl` in the run's folder, a JSON object a line.

    begin     what the run is made of; of a resumed run the step it goes on from
    log       a row of the log; from time to time with seconds by part, seconds by plugin, and memory
    save      a checkpoint is whole
    warning   what drivetrain warned of
    predict   metrics of a prediction after training
    error     what ended the run
    end       training has ended

Every line has `kind`, `time` (seconds since 1970) and, but for a warning, `step`. The file is only appended to. When
a run goes on from a checkpoint, what stands there of later steps is of the part that was lost: it is read, counted and
left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from drivetrain.errors import ConfigurationError

NAME = "drivetrain-record.jsonl"
VERSION = 1
STATE = "trainer_state.json"


@dataclass
class Recorded:
    """A run, as its record tells it.

    Attributes:
        source: the file that was read.
        begin: the first line of the run's last part; empty for a run of transformers.
        logs: the rows of the log that count, as they stand in the record.
        saves, warnings, predictions: the other lines.
        resumed: the steps from which the run was gone on with.
        lost: rows of the log that were lost by that, and are not in `logs`.
        parts: the last seconds by part that each part of the run has told.
        end, error: the last line, if training has ended.
        earlier: runs that stand before this one in the same file.
    """

    source: Path
    begin: dict[str, Any] = field(default_factory=dict)
    logs: list[dict[str, Any]] = field(default_factory=list)
    saves: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    lost: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    earlier: int = 0
    began: float | None = None
    last: float | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Takes the next line."""
        kind = row.get("kind")
        if kind == "begin":
            self._begin(row)
        elif kind == "log":
            row["part"] = len(self.parts)
            self.logs.append(row)
        elif kind == "save":
            self.saves.append(row)
        elif kind == "warning":
            self.warnings.append(row)
        elif kind == "predict":
            self.predictions.append(row)
        elif kind == "end":
            self.end = row
        elif kind == "error":
            self.error = row
        if "seconds" in row and self.parts:
            self.parts[-1] = row
        if "time" in row:
            self.last = row["time"]

    def _begin(self, row: dict[str, Any]) -> None:
        step = row.get("step", 0)
        if self.begin and not step:
            self.__init__(self.source, earlier=self.earlier + 1)  # type: ignore[misc]  # another run begins
        if self.begin:
            kept = [found for found in self.logs if found.get("step", 0) <= step]
            self.lost += len(self.logs) - len(kept)
            self.logs = kept
            self.saves = [found for found in self.saves if found.get("step", 0) <= step]
        if step:
            self.resumed.append(step)
        self.begin, self.end, self.error = row, None, None
        self.parts.append({"time": row.get("time"), "seconds": {}, "plugins": {}})
        if self.began is None:
            self.began = row.get("time")


class Named(NamedTuple):
    """A run and what it is called among those of a report."""

    name: str
    run: Recorded


def names_of(runs: Sequence[Recorded]) -> list[Named]:
    """Each run by its folder, and by as many folders above it as it takes to tell them apart."""
    parts = [_folder(run.source.resolve()).parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(found[-depth:]) for found in parts]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{found[-1]} #{number}" for number, found in enumerate(parts, 1)]
    return [Named(name, run) for name, run in zip(names, runs, strict=True)]


def _folder(source: Path) -> Path:
    """The run's folder: the state that tells of it may be that of a checkpoint in it."""
    folder = source.parent
    return folder.parent if folder.name.startswith("checkpoint-") and source.name == STATE else folder


class Reading:
    """Reads a record, and later what has been added to it.

    Args:
        path: a record, a `trainer_state.json`, or the folder of a run or of a checkpoint.

    Raises:
        ConfigurationError: there is nothing of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = find(path)
        self.run = Recorded(self.path)
        self._offset, self._rest = 0, b""

    def go_on(self) -> bool:
        """Reads what is new; says whether there was anything."""
        if self.path.name == STATE:
            return self._read_state()
        with self.path.open("rb") as file:
            file.seek(0, 2)
            if file.tell() < self._offset:  # another file has taken its place
                self._offset, self._rest, self.run = 0, b"", Recorded(self.path)
            file.seek(self._offset)
            new = file.read()
        if not new:
            return False
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")  # the last may be under way
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # half a row, where a machine went down
            if isinstance(row, dict):
                self.run.add(row)
        return True

    def _read_state(self) -> bool:
        changed = self.path.stat().st_mtime_ns
        if changed == self._offset:
            return False
        self._offset = changed
        self.run = Recorded(self.path)
        state = json.loads(self.path.read_text(encoding="utf-8"))
        for row in state.get("log_history", []):
            logs = {name: value for name, value in row.items() if name != "step"}
            self.run.logs.append({"kind": "log", "step": row.get("step", 0), "logs": logs})
        self.run.begin = {
            "max_steps": state.get("max_steps"),
            "epochs": state.get("num_train_epochs"),
            "trial": state.get("trial_params"),
        }
        if best := state.get("best_model_checkpoint"):
            step = state.get("global_step", 0)
            found = {"best": Path(best).name, "best_metric": state.get("best_metric")}
            self.run.saves.append({"kind": "save", "step": step, "checkpoint": None, **found})
        return True


def find(path: Path) -> Path:
    """The file that tells of a run: its record, else the state that transformers' Trainer writes as well.

    Raises:
        ConfigurationError: there is none.
    """
    if path.is_file():
        return path
    for name in (NAME, STATE):
        if (path / name).is_file():
            return path / name
    numbered = [
        (int(number), found)
        for found in path.glob(f"checkpoint-*/{STATE}")
        if (number := found.parent.name.removeprefix("checkpoint-")).isdigit()
    ]
    if numbered:
        return max(numbered)[1]
    what = "does not exist" if not path.exists() else f"holds neither {NAME} nor {STATE}"
    raise ConfigurationError(f"There is no run to report in {path}, which {what}.")


def read(path: Path) -> Recorded:
    """A run, as far as it has been recorded.

    Raises:
        ConfigurationError: there is nothing of a run, or it cannot be read.
    """
    reading = Reading(path)
    try:
        reading.go_on()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{reading.path} cannot be read: {error}") from error
    if not reading.run.begin:
        raise ConfigurationError(f"{reading.path} holds no run: its first line is not there yet.")
    return reading.run
