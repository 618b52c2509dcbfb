"""ClearML, offline: the session is read back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.trackers import library, logged

library("clearml")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import clearml

    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    clearml.Task.set_offline(True)
    return tmp_path / "cache"


def reports(session: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(session) as archive:
        lines = archive.read("metrics.jsonl").decode().splitlines()
    return [report for line in lines for report in json.loads(line)]


def curve(found: list[dict[str, Any]], metric: str, variant: str) -> list[tuple[int, float]]:
    return [
        (report["iter"], report["value"])
        for report in found
        if (report["metric"], report["variant"]) == (metric, variant)
    ]


def test_rows_arguments_and_the_same_task_again(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARML_PROJECT", "digits")
    monkeypatch.setenv("CLEARML_TASK", "a task")
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    made = logged(tmp_path, "clearml", learning_rate=0.125, **saving)
    made.train()
    (session,) = Path(tmp_path).rglob("offline-*.zip")
    found, history = reports(session), made.state.log_history
    assert curve(found, "loss", "train") == ([(row["step"], row["loss"]) for row in history if "loss" in row])
    assert curve(found, "loss", "eval") == (
        [(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row]
    )
    assert [report["value"] for report in found if report["variant"] == "train_loss"] == pytest.approx(
        [history[-1]["train_loss"]]
    )
    with zipfile.ZipFile(session) as archive:
        task = archive.read("task.json").decode()
    assert '"a task"' in task
    assert "0.125" in task
    assert "that-must-not-be-written" not in task

    again = logged(tmp_path, "clearml", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    (session,) = Path(tmp_path).rglob("offline-*.zip")
    assert [step for step, _ in curve(reports(session), "loss", "train")][-2:] == [6, 8]
