"""Weights & Biases, offline: the run's own file is read back."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.logged import TOKEN, Net

from drivetrain import Trainer, TrainingArguments

wandb = pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def end() -> None:
    """Ends the open run, and the service that writes its file: only then is all of it there."""
    wandb.finish()
    wandb.teardown()


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DISABLED", "WANDB_WATCH", "WANDB_LOG_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # wandb reads its environment once a process
    yield
    end()


def trainer(folder: Path, **arguments: Any) -> Trainer:
    data = [{"x": torch.ones(4) * i, "labels": i % 2} for i in range(32)]
    args = TrainingArguments(
        str(folder / "out"),
        **{
            "num_train_epochs": 2,
            "logging_steps": 2,
            "evaluation_strategy": "epoch",
            "save_strategy": "no",
            "report_to": "wandb",
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        },
    )
    return Trainer(Net(), args, train_dataset=data, eval_dataset=data)


def records(path: Path) -> Iterator[Any]:
    """The records of a run's file. It is a log of blocks of 32 KiB: each piece of a record has a header of
    checksum, length and kind, and a block's last bytes are left out where no header fits."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    block, header = 32768, struct.Struct("<IHB")
    place, pieces = header.size, b""
    while place + header.size <= len(content):
        room = block - place % block
        if room < header.size:
            place += room
            continue
        _, length, kind = header.unpack_from(content, place)
        place += header.size
        pieces += content[place : place + length]
        place += length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)


def rows(path: Path) -> list[dict[str, Any]]:
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            found.append({name: value for name, value in items.items() if not name.startswith("_")})
    return found


def header(path: Path) -> Any:
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def configuration(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        updates = (
            record.run.config.update if kind == "run" else record.config.update if kind == "config" else ()
        )
        for item in updates:
            found[item.key or item.nested_key[0]] = json.loads(item.value_json)
    return found


def named(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the log, as dashboards name it."""
    made = {}
    for name, value in row.items():
        if name == "step":
            made["train/global_step"] = value
        else:
            made[f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"] = value
    return made


def test_rows_configuration_and_name(tmp_path: Path) -> None:
    made = trainer(tmp_path, run_name="a name", learning_rate=0.125, hub_token=TOKEN)
    made.train()
    end()
    (path,) = runs(tmp_path)
    assert rows(path) == [named(row) for row in made.state.log_history]
    assert header(path).display_name == "a name"
    assert header(path).project == "huggingface"
    assert configuration(path)["learning_rate"] == 0.125
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes(), file


def test_project_from_the_environment_and_no_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    trainer(tmp_path).train()
    end()
    (path,) = runs(tmp_path)
    assert header(path).project == "digits"
    assert header(path).display_name == ""


def test_an_evaluation_after_training_goes_into_the_same_run(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train()
    made.evaluate()
    end()
    (path,) = runs(tmp_path)
    assert rows(path) == [named(row) for row in made.state.log_history]


def test_a_resume_goes_on_in_the_same_run_and_a_new_training_has_its_own(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4}
    made = trainer(tmp_path, **options)
    made.train()
    end()
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    again.train()
    end()
    first, resumed, fresh = runs(tmp_path)
    assert header(resumed).run_id == header(first).run_id
    assert header(fresh).run_id != header(first).run_id
    assert [row["train/global_step"] for row in rows(resumed) if "train/loss" in row] == [6, 8]
    assert [row["train/global_step"] for row in rows(fresh) if "train/loss" in row] == [2, 4, 6, 8]


def test_a_run_that_the_script_opened_is_used(tmp_path: Path) -> None:
    own = wandb.init(project="mine")
    made = trainer(tmp_path)
    made.train()
    assert wandb.run is own
    end()
    (path,) = runs(tmp_path)
    assert header(path).project == "mine"
    assert rows(path) == [named(row) for row in made.state.log_history]


def test_nobody_logged_in_is_offline_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        trainer(tmp_path).train()
    end()
    assert len(runs(tmp_path)) == 1
    assert sum("Nobody is logged in to wandb" in record.getMessage() for record in caplog.records) == 1


def test_disabled_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    trainer(tmp_path).train()
    assert runs(tmp_path) == []


def test_gradients_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_WATCH", "gradients")
    made = trainer(tmp_path, num_train_epochs=30, evaluation_strategy="no")
    made.train()
    end()
    (path,) = runs(tmp_path)
    assert any("gradients/layer.weight" in name for row in rows(path) for name in row)


def artifacts(path: Path) -> list[str]:
    """Names of the artifacts with a model, without the run's id."""
    found = [
        record.request.log_artifact.artifact
        for record in records(path)
        if record.WhichOneof("record_type") == "request"
    ] + [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
    return [artifact.name.partition("-")[0] for artifact in found if artifact.type == "model"]


@pytest.mark.parametrize(
    ("word", "expected"), [("checkpoint", ["checkpoint", "model"]), ("end", ["model"]), ("true", ["model"])]
)
def test_checkpoints_and_the_model_are_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, expected: list[str]
) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", word)
    trainer(tmp_path, save_strategy="steps", save_steps=8).train()
    end()
    (path,) = runs(tmp_path)
    assert artifacts(path) == expected
