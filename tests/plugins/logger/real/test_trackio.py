"""Trackio: its database is read back by its own reader."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.trackers import library, logged

# It reads the variable when it is imported.
FOLDER = tempfile.TemporaryDirectory()
os.environ["TRACKIO_DIR"] = FOLDER.name
trackio = library("trackio")


def test_rows_configuration_and_the_same_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trackio.sqlite_storage import SQLiteStorage as storage

    monkeypatch.setenv("TRACKIO_PROJECT", "digits")
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    made = logged(tmp_path, "trackio", run_name="a name", learning_rate=0.125, **saving)
    made.train()
    assert storage.get_runs("digits") == ["a name"]
    losses = [
        (row["step"], row["train/loss"])
        for row in storage.get_logs("digits", "a name")
        if "train/loss" in row
    ]
    assert losses == [(row["step"], row["loss"]) for row in made.state.log_history if "loss" in row]
    config = storage.get_run_config("digits", "a name")
    assert config["learning_rate"] == 0.125
    assert b"that-must-not-be-written" not in (Path(FOLDER.name) / "digits.db").read_bytes()
    again = logged(tmp_path, "trackio", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert storage.get_runs("digits") == ["a name"]
    steps = [row["step"] for row in storage.get_logs("digits", "a name") if "train/loss" in row]
    assert steps == [2, 4, 6, 8, 6, 8]
