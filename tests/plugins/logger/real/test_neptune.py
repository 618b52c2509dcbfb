"""Neptune's library, offline: the operations that it keeps for an upload are read back. Its service is no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.logged import curve
from support.trackers import library, logged

library("neptune")


def operations(folder: Path) -> Iterator[dict[str, Any]]:
    (path,) = folder.glob(".neptune/offline/run__*/data-1.log")
    text, decoder, place = path.read_text().replace("\n", ""), json.JSONDecoder(), 0
    while place < len(text):
        entry, place = decoder.raw_decode(text, place)
        yield entry["obj"]


def test_rows_and_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEPTUNE_MODE", "offline")
    monkeypatch.setenv("NEPTUNE_PROJECT", "us/digits")
    made = logged(tmp_path, "neptune", {"base_namespace": "tuning"}, learning_rate=0.125)
    made.train()
    found = list(operations(tmp_path))
    for name, path in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
        written = [
            (int(value["step"]), value["value"])
            for entry in found
            if entry["type"] == "LogFloats" and entry["path"] == ["tuning", *path.split("/")]
            for value in entry["values"]
        ]
        assert written == curve(made.state.log_history, name)
    rates = [
        entry["value"] for entry in found if entry["path"][-2:] == ["trainer_parameters", "learning_rate"]
    ]
    assert rates == [0.125]
    assert "that-must-not-be-written" not in json.dumps(found)
