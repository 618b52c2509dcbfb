"""A real run, real file systems of fsspec: a folder, and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from drivetrain_fsspec import FsspecOptions
from drivetrain_fsspec.hub import Fsspec
from torch import nn

from drivetrain import ConfigurationError, HubError, Trainer, TrainerCallback, TrainingArguments, Upload


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(folder: Path, to: str, **arguments: Any) -> Trainer:
    data = [{"x": torch.ones(4) * i, "labels": i % 2} for i in range(16)]
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(
        str(folder / "a-model"),
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=1,
        push_to_hub=True,
        hub_model_id=to,
        **{"hub_strategy": "all_checkpoints", "hub_always_push": True, **quiet, **arguments},
    )
    torch.manual_seed(0)
    return Trainer(Net(), args, train_dataset=data)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder(tmp_path: Path) -> None:
    there = tmp_path / "there" / "mine"
    made = trainer(tmp_path, there.as_uri(), save_total_limit=1)
    assert there.is_dir()  # known before the first step
    made.train()
    files = tree(there)
    assert {name.partition("/")[0] for name in files} == {
        "README.md",
        "model.safetensors",
        "training_args.json",
        *(f"checkpoint-{step}" for step in (1, 2, 3, 4)),
    }
    here = tree(tmp_path / "a-model" / "checkpoint-4")
    assert {name: files[f"checkpoint-4/{name}"] for name in here} == here
    assert files["model.safetensors"] == here["model.safetensors"]
    assert b"# mine\n\n4 updates, 2.00 epochs." in files["README.md"]
    # What is there can be gone on from, and pushes to the same place.
    other = trainer(tmp_path / "other", there.as_uri(), hub_strategy="checkpoint")
    other.train(resume_from_checkpoint=str(there / "checkpoint-2"))
    assert torch.equal(other.model.layer.weight, made.model.layer.weight)
    assert "last-checkpoint/manifest.json" in tree(there)


def test_memory(tmp_path: Path) -> None:
    trainer(tmp_path, "memory://models/mine", hub_strategy="every_save").train()
    system = fsspec.filesystem("memory")
    assert {"model.safetensors", "README.md"} <= {
        path.rpartition("/")[2] for path in system.find("/models/mine")
    }
    system.rm("/models", recursive=True)


def test_what_is_replaced_goes_and_what_fails_leaves_no_trace(tmp_path: Path) -> None:
    hub = Fsspec(FsspecOptions(block_size=3))
    there = tmp_path / "there"
    files = {}
    for name, content in (("a", "first"), ("b", "second"), ("manifest.json", "seal")):
        (tmp_path / name).write_text(content)
        files[f"last/{name}"] = str(tmp_path / name)
    hub.upload(Upload(there.as_uri(), files, "one", ("last/*",)))
    assert tree(there) == {"last/a": b"first", "last/b": b"second", "last/manifest.json": b"seal"}
    gone = {"last/a": str(tmp_path / "b"), "last/none": str(tmp_path / "none")}
    with pytest.raises(HubError, match="cannot be written to"):
        hub.upload(Upload(there.as_uri(), gone, "two", ("last/*",)))
    assert tree(there) == {"last/a": b"first", "last/b": b"second", "last/manifest.json": b"seal"}
    hub.upload(Upload(there.as_uri(), {"last/a": str(tmp_path / "b")}, "three", ("last/*",)))
    assert tree(there) == {"last/a": b"second"}


class TakeAway(TrainerCallback):
    """Puts a file where the folder was, after the first step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            os.rename(self.folder, self.folder.with_name("away"))
            self.folder.write_text("in the way")


def test_a_folder_that_goes_away_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "there"
    made = trainer(tmp_path, there.as_uri(), hub_strategy="every_save")
    made.add_callback(TakeAway(there))
    made.train()
    assert made.state.global_step == 4
    assert "Not at the hub: the model (" in caplog.text
    assert "Send it by: drivetrain push " in caplog.text


def test_what_cannot_work_is_known_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"push_to_hub=True: file:.* cannot be written to \("):
        trainer(tmp_path, (tmp_path / "file" / "mine").as_uri())
    with pytest.raises(ConfigurationError, match="fsspec cannot reach gopher:// here"):
        trainer(tmp_path, "gopher://models/mine")
    with pytest.raises(ConfigurationError, match="who may read a folder or a bucket is set there"):
        trainer(tmp_path, (tmp_path / "there").as_uri(), hub_private_repo=True)
    with pytest.raises(ConfigurationError, match=r"has no option 'blocksize'\. Did you mean 'block_size'"):
        trainer(tmp_path, (tmp_path / "there").as_uri(), plugins={"fsspec": {"blocksize": 1}})
