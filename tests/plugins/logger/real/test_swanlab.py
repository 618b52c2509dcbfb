"""SwanLab, offline: the run's own file is read back by SwanLab's reader."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.logged import curve
from support.trackers import library, logged

library("swanlab")


def records(path: Path) -> list[Any]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    reader.open(str(path))
    made = []
    for data in reader:
        record = Record()
        record.ParseFromString(data)
        made.append(record)
    reader.close()
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("swanlog/run-*/run-*.swanlab"), key=lambda path: path.parent.name)


def losses(found: list[Any]) -> list[tuple[int, float]]:
    scalars = [record.scalar for record in found if record.HasField("scalar")]
    return [(scalar.step, scalar.value.number) for scalar in scalars if scalar.key == "train/loss"]


def test_nobody_is_logged_in_so_rows_and_the_resumed_run_are_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SWANLAB_PROJ_NAME", "digits")
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    made = logged(tmp_path, "swanlab", run_name="a name", learning_rate=0.125, **saving)
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        made.train()
    assert sum("Nobody is logged in to SwanLab" in record.getMessage() for record in caplog.records) == 1
    (path,) = files(tmp_path)
    found = records(path)
    start = next(record.start for record in found if record.HasField("start"))
    assert (start.project, start.name) == ("digits", "a name")
    written, told = losses(found), curve(made.state.log_history, "loss")
    assert [step for step, _ in written] == [step for step, _ in told]
    assert [value for _, value in written] == pytest.approx([value for _, value in told], rel=1e-5)
    config = (path.parent / "files" / "config.yaml").read_text()
    assert "learning_rate" in config
    assert "that-must-not-be-written" not in config

    logged(tmp_path, "swanlab", **saving).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    again = records(files(tmp_path)[-1])
    assert next(record.start.id for record in again if record.HasField("start")) == start.id
    assert [step for step, _ in losses(again)][-2:] == [6, 8]
