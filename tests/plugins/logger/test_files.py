"""The loggers that write a file: what is in it is what the log has, also after a resume and a run that was killed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.logged import TOKEN, trainer

from drivetrain import TrainerCallback


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, whichever it is, without empty cells."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [
            {name: int(cell) if name == "step" else float(cell) for name, cell in row.items() if cell != ""}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("word", ["csv", "jsonl"])
def test_a_file_is_the_log(tmp_path: Path, word: str) -> None:
    path = tmp_path / "out" / f"log.{word}"
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "hub_token": TOKEN}
    made = trainer(tmp_path, word, **saving)
    made.train()
    assert lines(path) == made.state.log_history
    # An evaluation by itself is added.
    made.evaluate()
    assert lines(path) == made.state.log_history
    # A run that is killed leaves half of a line, and rows that its last checkpoint does not know.
    with path.open("a") as file:
        file.write('{"loss": 1.0, "st' if word == "jsonl" else "8,2.0,1.")
    again = trainer(tmp_path, word, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert lines(path) == again.state.log_history
    # A new training begins anew.
    again.train()
    assert lines(path) == again.state.log_history
    if word == "jsonl":
        assert json.loads((tmp_path / "out" / "log.config.json").read_text())["save_steps"] == 4
    for file in (tmp_path / "out").glob("log*"):
        assert TOKEN not in file.read_text()


def test_what_is_no_number_has_its_place(tmp_path: Path) -> None:
    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            made.log({"word": 'a "word", and more', "none": None, "nan": math.nan})

    made = trainer(
        tmp_path,
        ["csv", "jsonl"],
        callbacks=[Adds],
        max_steps=1,
        evaluation_strategy="no",
        plugins_options={"csv": {"path": "elsewhere/own.csv"}},
    )
    made.train()
    row = lines(tmp_path / "out" / "log.jsonl")[0]
    assert row["word"] == 'a "word", and more'
    assert row["none"] is None
    assert math.isnan(row["nan"])
    with (tmp_path / "out" / "elsewhere" / "own.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert (found[0]["word"], found[0]["nan"]) == ('a "word", and more', "nan")
    assert list(found[0])[:2] == ["step", "epoch"]
