"""DagsHub: what it shares with MLflow, on a store of this machine. Uploads need its service, which is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.logged import curve
from support.trackers import library, logged

from drivetrain.arguments import TrainingArguments
from drivetrain.errors import ConfigurationError
from drivetrain.resolve import resolve

library("dagshub")
mlflow = library("mlflow")


def test_rows_go_to_the_address_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    made = logged(tmp_path, "dagshub")
    made.train()
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs(["0"])
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == curve(made.state.log_history, "loss")


def test_without_an_address_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs MLFLOW_TRACKING_URI"):
        resolve(TrainingArguments("out", report_to="dagshub"))


def test_an_upload_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_DAGSHUB_LOG_ARTIFACTS", "1")
    monkeypatch.setenv("DAGSHUB_USER_TOKEN", "none")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    assert logged(tmp_path, "dagshub").train().global_step == 8
    assert any("Logger 'dagshub' failed" in record.getMessage() for record in caplog.records)
