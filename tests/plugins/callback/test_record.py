"""The record of a run: what is in it, and that neither a kill nor a disk nor a resume spoils it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import accuracy, rows, trainer

from drivetrain import TrainerCallback
from drivetrain.errors import ConfigurationError
from drivetrain.record import NAME, Reading, Recorded, read


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / NAME).read_text(encoding="utf-8").splitlines()]


def steps(run: Recorded, name: str = "loss") -> list[int]:
    return [row["step"] for row in run.logs if name in row["logs"]]


def test_a_run_is_told_whole(tmp_path: Path) -> None:
    class Warns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                logging.getLogger("drivetrain").warning("Careful with %s.", "hf_abcdefghijklmnopqrstuvwx")
            if state.global_step == 5:
                kwargs["run"].request_stop("enough")

    made = trainer(
        tmp_path,
        compute_metrics=accuracy,
        callbacks=[Warns],
        max_steps=8,
        logging_steps=1,
        save_steps=2,
        evaluation_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        hub_token="hf_abcdefghijklmnopqrstuvwx",
        warmup_steps=2,
    )
    made.train()
    made.evaluate()
    made.predict(rows(9))
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    assert "hf_abcdefgh" not in text
    run = read(tmp_path)
    assert run.begin["model"] == {"class": "Toy", "parameters": 227, "trained": 227}
    assert run.begin["max_steps"] == 8
    assert {"max_steps", "hub_token", "warmup_steps"} <= set(run.begin["given"])
    assert run.begin["arguments"]["warmup_steps"] == 2
    assert run.begin["arguments"]["hub_token"] == "<token>"
    assert ["strategy", "single"] in [found[:2] for found in run.begin["plugins"]]
    assert run.begin["versions"]["torch"] == torch.__version__
    assert steps(run) == [1, 2, 3, 4, 5]
    assert steps(run, "eval_accuracy") == [2, 4, 5]  # the last one after training
    first = run.logs[0]
    assert {"rows_per_second", "grad_norm"} <= set(first["figures"])
    assert first["memory"]["host"] > 10_000_000
    assert [found["checkpoint"] for found in run.saves] == ["checkpoint-2", "checkpoint-4"]
    assert [found["message"] for found in run.warnings if "Careful" in found["message"]] == [
        "Careful with <token>."
    ]
    assert run.end is not None
    assert run.end["stopped"] == "enough"
    assert run.end["best"] == os.path.basename(str(made.state.best_model_checkpoint))
    assert {"setup", "data", "forward", "backward", "optimizer"} <= set(run.end["seconds"])
    assert set(run.end["ranks"][0]) >= {"data", "forward"}
    assert len(run.predictions) == 1
    assert logging.getLogger("drivetrain").filters == [
        found for found in logging.getLogger("drivetrain").filters if type(found).__name__ != "Hearing"
    ]


def test_it_can_be_left_out_and_another_run_begins_anew(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=1, save_strategy="no", record=False).train()
    assert list(tmp_path.iterdir()) == []
    for count in (3, 2):
        trainer(tmp_path, max_steps=count, save_strategy="no", logging_steps=1).train()
    run = read(tmp_path)
    assert (steps(run), run.earlier, run.lost) == ([1, 2], 1, 0)


SCRIPT = """
import os, signal, sys
from support.toy import trainer
from drivetrain import TrainerCallback

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

trainer(sys.argv[1], max_steps=9, save_steps=2, logging_steps=1, callbacks=[Kill]).train()
"""


def test_a_killed_run_is_readable_and_goes_on_in_the_same_file(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    reading = Reading(out)
    assert reading.go_on()
    assert steps(reading.run) == [1, 2, 3, 4, 5]
    assert reading.run.end is None
    with (out / NAME).open("ab") as file:
        file.write(b'{"kind": "log", "step": 6, "lo')  # the machine goes down in the midst of a row
    resumed = trainer(out, max_steps=9, save_steps=2, logging_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert reading.go_on()  # who follows a run sees the rest of it
    assert not reading.go_on()
    for run in (reading.run, read(out)):
        assert steps(run) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert run.resumed == [4]
        assert run.lost == 1  # the row of step 5, which was done again
        assert [found["checkpoint"] for found in run.saves] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
        assert len(run.parts) == 2
        assert run.end is not None


def test_an_error_is_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError('no more of https://me:secretsecret@host/ and "hun\\ter2 hun\\ter2"')

    monkeypatch.setenv("SOME_PASSWORD", "hun\\ter2 hun\\ter2")  # which JSON writes in another way
    with pytest.raises(RuntimeError):
        trainer(tmp_path, max_steps=2, logging_steps=1, callbacks=[Fails]).train()
    last = lines(tmp_path)[-1]
    assert last["kind"] == "error"
    assert last["error"].startswith("RuntimeError: no more")
    assert "secretsecret" not in last["error"]
    assert "ter2" not in last["error"]


def test_a_record_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()
    made = trainer(tmp_path, max_steps=3, logging_steps=1, save_strategy="no")
    made.train()
    made.evaluate()
    assert made.state.global_step == 3
    assert caplog.text.count("cannot be written") == 1


def test_each_trial_has_its_own(tmp_path: Path) -> None:
    from support.toy import Toy

    made = trainer(tmp_path, model_init=Toy, max_steps=2, logging_steps=1, save_strategy="no")
    made.hyperparameter_search(lambda trial: {"seed": trial.suggest_int("seed", 1, 9)}, n_trials=2)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(NAME))
    assert found == [f"run-0/{NAME}", f"run-1/{NAME}"]
    assert set(read(tmp_path / "run-1").begin["trial"]) == {"seed"}


def test_runs_of_transformers_and_none(tmp_path: Path) -> None:
    state = {
        "max_steps": 4,
        "num_train_epochs": 1,
        "global_step": 4,
        "best_model_checkpoint": "out/checkpoint-2",
        "best_metric": 0.5,
        "log_history": [
            {"loss": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 2},
            {"eval_loss": 0.5, "step": 2},
        ],
    }
    for number in (2, 10):
        folder = tmp_path / "run" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(
            json.dumps({**state, "max_steps": number}), encoding="utf-8"
        )
    run = read(tmp_path / "run")
    assert run.begin["max_steps"] == 10  # by number, and not by the alphabet
    assert steps(run) == [2]
    assert run.saves[0]["best"] == "checkpoint-2"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="holds neither drivetrain-record"):
        read(tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="which does not exist"):
        read(tmp_path / "nothing")
    (tmp_path / "empty" / NAME).write_text("", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="holds no run"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "trainer_state.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(tmp_path / "empty" / "trainer_state.json")


def test_where_nobody_tells_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that is not Linux, without psutil."""
    from drivetrain_plugins.callback import memory_metrics

    monkeypatch.setattr(memory_metrics, "_STATUS", tmp_path / "not there")
    monkeypatch.setitem(sys.modules, "psutil", None)
    trainer(tmp_path / "out", max_steps=2, logging_steps=1).train()
    run = read(tmp_path / "out")
    assert steps(run) == [1, 2]
    assert run.end is not None
    assert run.end["memory"] == {}


def test_switched_off_there_is_none_and_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, record=False, max_steps=2).train()
    assert not (tmp_path / NAME).exists()
    assert "record" not in caplog.text
