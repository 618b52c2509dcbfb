"""MLflow: a store on SQLite, and a real server that is killed in the midst of a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.logged import curve, trainer
from support.trackers import assert_no_token, library, logged

from drivetrain import TrainerCallback
from drivetrain.arguments import TrainingArguments
from drivetrain.errors import ConfigurationError
from drivetrain.resolve import resolve

mlflow = library("mlflow")

LIMIT = 240.0


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield uri
    while mlflow.active_run() is not None:
        mlflow.end_run()


def runs(uri: str) -> list[Any]:
    client = mlflow.MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(client.search_runs(ids), key=lambda run: run.info.start_time)


def found(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in history]


def test_rows_parameters_tags_and_the_card(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    monkeypatch.setenv("MLFLOW_TAGS", '{"release": "2.2"}')
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# A model\n")
    made = logged(
        tmp_path, "mlflow", run_name="a name", learning_rate=0.125, save_strategy="steps", save_steps=4
    )
    made.train()
    (run,) = runs(store)
    history = made.state.log_history
    for name in ("loss", "learning_rate", "eval_loss", "train_loss"):
        assert found(store, run, name) == curve(history, name)
    assert (run.info.run_name, run.info.status) == ("a name", "FINISHED")
    assert run.data.params["learning_rate"] == "0.125"
    assert run.data.tags["release"] == "2.2"
    client = mlflow.MlflowClient(store)
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    kept = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert kept == ["README.md", "checkpoint-4", "checkpoint-8"]
    assert_no_token(tmp_path)

    # An evaluation afterwards, and a resume, go on in the same run.
    made.evaluate()
    assert len(found(store, run, "eval_loss")) == 3
    again = logged(tmp_path, "mlflow", save_strategy="steps", save_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    (run,) = runs(store)
    assert [step for step, _ in found(store, run, "loss")] == [2, 4, 6, 8, 6, 8]
    # A new training has its own, and an error in it is known.

    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        logged(tmp_path / "new", "mlflow", callbacks=[Fails]).train()
    assert [run.info.status for run in runs(store)] == ["FINISHED", "FAILED"]


def test_the_run_of_the_script_is_used_and_stays_open(tmp_path: Path, store: str) -> None:
    with mlflow.start_run(run_name="mine") as own:
        made = logged(tmp_path, "mlflow")
        made.train()
        assert mlflow.active_run().info.run_id == own.info.run_id
        assert mlflow.MlflowClient().get_run(own.info.run_id).info.status == "RUNNING"
    (run,) = runs(store)
    assert run.info.run_name == "mine"
    assert found(store, run, "loss") == curve(made.state.log_history, "loss")


def test_long_parameters_can_be_taken_apart(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"label2id": {f"label-{i}": "x" * 100 for i in range(80)}}

        def to_json_string(self) -> str:
            return json.dumps(self.to_dict())

    for flat in ("0", "1"):
        monkeypatch.setenv("MLFLOW_FLATTEN_PARAMS", flat)
        made = logged(tmp_path / flat, "mlflow", max_steps=1)
        made.model.config = Config()
        made.train()
    whole, taken = runs(store)
    assert "label2id" not in whole.data.params
    assert taken.data.params["label2id.label-79"] == "x" * 100


def test_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    with pytest.raises(ConfigurationError, match="DISABLE_MLFLOW_INTEGRATION"):
        resolve(TrainingArguments("out", report_to="mlflow"))
    plan = resolve(TrainingArguments("out", report_to="all"))
    assert "mlflow" not in [active.name for active in plan.of_kind("logger")]
    assert "Left out:" in plan.reporting


@contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A real MLflow server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
    ]
    command += [
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "server.log").open("wb") as log:
        started = subprocess.Popen(
            [*command, "--workers", "1"], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert started.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield started, uri
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def test_a_real_server_and_what_is_there_when_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()
    with server(tmp_path) as (process, uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        made = logged(tmp_path / "whole", "mlflow")
        made.train()
        (run,) = runs(uri)
        assert found(uri, run, "loss") == curve(made.state.log_history, "loss")
        assert run.info.status == "FINISHED"

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

        class Kills(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 5:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

        killed = logged(tmp_path / "killed", "mlflow", callbacks=[Kills])
        output = killed.train()
    assert output.global_step == 8
    assert [float(value.sum()) for value in killed.model.parameters()] == [
        float(value.sum()) for value in plain.model.parameters()
    ]
    said = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith("Logger 'mlflow'")
    ]
    assert said[0].startswith("Logger 'mlflow' failed, and the run goes on without what it could not write: ")
    assert said[-1].startswith("Logger 'mlflow' has lost ")
    mlflow.set_tracking_uri(None)
