"""A checkpoint that cannot be written: the run stops, or goes on and says so."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.toy import accuracy, trainer

from drivetrain import CheckpointError, TrainerCallback


class Blocked(TrainerCallback):
    """Puts a file where the output folder was, from update 3 to update 5."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[str] = []
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._writer is not None:
            self.trainer._writer.join()  # so that it is clear which write meets the file
        if state.global_step == 3:
            shutil.rmtree(self.folder)
            self.folder.write_text("in the way")
        if state.global_step == 5:
            self.folder.unlink()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved += sorted(path.name for path in self.folder.glob("checkpoint-*"))


def make(folder: Path, **kwargs: Any) -> tuple[Any, Blocked]:
    blocked = Blocked(folder)
    settings: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 2,
        "evaluation_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 6,
        "load_best_model_at_end": True,
        "compute_metrics": accuracy,
    }
    made = blocked.trainer = trainer(folder, callbacks=[blocked], **settings, **kwargs)
    return made, blocked


@pytest.mark.parametrize("form", [False, True])
def test_it_ends_the_run(tmp_path: Path, form: bool) -> None:
    made, blocked = make(tmp_path / "run", save_async=form)
    with pytest.raises(CheckpointError, match="checkpoint-4"):
        made.train()
    assert blocked.saved == (
        [] if form else ["checkpoint-2"]
    )  # with a thread it is told at the next save: it is gone


@pytest.mark.parametrize("form", [False, True])
def test_it_is_a_warning_where_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: bool
) -> None:
    made, blocked = make(tmp_path / "run", on_save_error="warn", save_async=form)
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made.train()
    assert "The run goes on without this checkpoint" in caplog.text
    assert blocked.saved == (["checkpoint-6"] if form else ["checkpoint-2", "checkpoint-6"])
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    assert made.state.best_model_checkpoint is None or "checkpoint-4" not in made.state.best_model_checkpoint
