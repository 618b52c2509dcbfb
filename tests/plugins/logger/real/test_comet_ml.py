"""Comet, offline: the archive is read back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.logged import curve
from support.trackers import library, logged

library("comet_ml")


def messages(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with zipfile.ZipFile(path) as archive:
        for line in archive.read("messages.json").decode().splitlines():
            message = json.loads(line)
            yield message["type"], message["payload"]


def metrics(path: Path, name: str) -> list[tuple[int, float]]:
    found = [payload["metric"] for kind, payload in messages(path) if kind == "metric_msg"]
    return [(metric["step"], metric["metricValue"]) for metric in found if metric["metricName"] == name]


def archives(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.zip"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMET_MODE", "OFFLINE")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    return tmp_path / "comet"


def test_rows_parameters_name_and_the_same_experiment_again(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_PROJECT_NAME", "digits")
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    made = logged(tmp_path, "comet_ml", run_name="a name", learning_rate=0.125, **saving)
    made.train()
    (first,) = archives(offline)
    for name in ("loss", "eval_loss", "train_loss"):
        assert metrics(first, name) == curve(made.state.log_history, name)
    told = [payload.get("param", {}) for kind, payload in messages(first) if kind == "parameter_msg"]
    assert [param["paramValue"] for param in told if param.get("paramName") == "args_learning_rate"] == [
        0.125
    ]
    with zipfile.ZipFile(first) as archive:
        experiment = json.loads(archive.read("experiment.json"))
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert experiment["project_name"] == "digits"
    assert b"that-must-not-be-written" not in text
    assert b'"a name"' in text

    # A resume writes an archive of the same experiment, for the upload to add to it.
    again = logged(tmp_path, "comet_ml", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    _, second = archives(offline)
    with zipfile.ZipFile(second) as archive:
        resumed = json.loads(archive.read("experiment.json"))
    assert resumed["offline_id"] == experiment["offline_id"]
    assert [step for step, _ in metrics(second, "loss")] == [6, 8]


def test_switched_off_by_the_environment(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_MODE", "DISABLED")
    logged(tmp_path, "comet_ml").train()
    assert archives(offline) == []
