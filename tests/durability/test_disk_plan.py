"""The plan of the disk: how many checkpoints there will be at a time, how large they are, and what is said of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.toy import Toy, accuracy, trainer

from drivetrain import Trainer, TrainerCallback
from drivetrain.checkpoint.files import tree_bytes
from drivetrain.disk_plan import DiskPlan


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A disk with as much room as a test says: real ones of the right size are in test_disks.py."""

    def set_free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, count))

    return set_free


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "will not fit" in record.getMessage()]


def checkpoints_of(out: Path, *sizes: int) -> None:
    for number, size in enumerate(sizes, 1):
        folder = out / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"\0" * size)


@pytest.mark.parametrize(
    ("saves", "limit", "best", "there", "needed"),
    [
        (5, None, False, (), 500),  # all stay
        (5, 2, False, (), 300),  # two stay, and one more while it is written
        (2, 2, False, (), 200),  # there will never be a third
        (5, 1, False, (), 200),
        (5, 1, True, (), 300),  # the best beside the latest
        (5, 3, True, (), 400),  # the best is one of the three
        (5, 2, False, (100, 100), 100),  # the two that are there go
        (5, 2, False, (100, 100, 100, 100), 100),  # of another limit: all are there when the next is written
        (5, 2, False, (10, 10), 280),  # of a smaller model
        (1, None, False, (100, 100), 100),
    ],
)
def test_how_much_is_needed(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    free: Any,
    saves: int,
    limit: int | None,
    best: bool,
    there: tuple[int, ...],
    needed: int,
) -> None:
    checkpoints_of(tmp_path, *there)
    for room, lines in ((needed, 0), (needed - 1, 1)):
        caplog.clear()
        free(room)
        DiskPlan(str(tmp_path), saves, limit, best).expect(100)
        assert len(said(caplog)) == lines, f"{room} free"
    assert f"need {needed} bytes more in {tmp_path}, where {needed - 1} bytes are free" in said(caplog)[0]
    assert "\n" not in said(caplog)[0]


def test_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, free: Any) -> None:
    plan = DiskPlan(str(tmp_path), 3, None, False)
    free(150)
    plan.expect(10)
    assert not said(caplog)
    checkpoints_of(tmp_path, 100)
    plan.written(str(tmp_path / "checkpoint-1"))  # it was much larger than expected: two more need 200
    assert "2 of 100 bytes each need 200 bytes more" in said(caplog)[0]
    plan.written(str(tmp_path / "checkpoint-1"))
    plan.expect(10**9)
    assert len(said(caplog)) == 1


def test_a_run_that_fits_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, max_steps=4, save_steps=2).train()
    assert not said(caplog)


def planned(folder: Path, **settings: Any) -> DiskPlan:
    """The plan of a run, as it is before the first step."""
    found: list[DiskPlan] = []

    class Stop(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert made._disk is not None
            found.append(dataclasses.replace(made._disk))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop, control.should_save = True, False

    resume = settings.pop("resume", None)
    made = trainer(folder, callbacks=[Stop], **{"save_strategy": "steps", **settings})
    made.train(resume_from_checkpoint=resume)
    return found[0]


def test_the_saves_of_a_run_are_counted(tmp_path: Path) -> None:
    """A run of 101 rows: 13 updates an epoch."""
    assert planned(tmp_path / "a", num_train_epochs=2, save_steps=5).saves == 5
    assert planned(tmp_path / "b", num_train_epochs=2, save_steps=30).saves == 0
    assert planned(tmp_path / "c", max_steps=40, save_strategy="epoch").saves == 4
    assert planned(tmp_path / "d", max_steps=100, save_steps=0.1).saves == 10
    first = trainer(tmp_path / "e", max_steps=10, save_strategy="steps", save_steps=5)
    first.train()
    assert first._disk is not None
    assert first._disk.saves == 0
    resumed = planned(
        tmp_path / "e", num_train_epochs=2, save_steps=5, resume=str(tmp_path / "e" / "checkpoint-5")
    )
    assert resumed.saves == 4
    best = {"load_best_model_at_end": True, "evaluation_strategy": "steps", "compute_metrics": accuracy}
    assert planned(tmp_path / "f", save_steps=5, eval_steps=5, save_total_limit=1, **best).best
    stays = trainer(tmp_path / "g", max_steps=2, save_strategy="no")
    stays.train()
    assert stays._disk is None


@pytest.mark.parametrize(
    ("optim", "settings"),
    [
        ("adamw_torch", {}),
        ("sgd", {}),
        ("sgd", {"optim_args": "momentum=0.9"}),
        ("adagrad", {}),
        ("rmsprop", {}),
        ("adafactor", {}),
        ("muon", {}),
        (torch.optim.Adam, {}),  # the user's own is not tried, and taken for one with two moments
    ],
)
def test_the_size_is_about_right(
    tmp_path: Path, optim: Any, settings: dict[str, Any], monkeypatch: Any
) -> None:
    """What is expected before the first step is what the first checkpoint takes, but for small files."""
    expected: list[int] = []
    monkeypatch.setattr(DiskPlan, "expect", lambda _, needed: expected.append(needed))

    class Larger(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3)
            self.middle = torch.nn.Linear(1024, 1024)
            self.middle.requires_grad_(optim != "adagrad")  # what is frozen has no state

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            found = super().forward(x, labels)
            return {"loss": found["loss"] + self.middle(x.repeat(1, 128)).square().mean()}

    made: Trainer = trainer(
        tmp_path, model=Larger(), max_steps=1, save_strategy="steps", save_steps=1, optim=optim, **settings
    )
    made.train()
    (guess,) = expected
    really = tree_bytes(os.path.join(tmp_path, "checkpoint-1"))
    assert abs(guess - really) < 0.03 * really + 50_000, (guess, really)
