"""save_async: the run goes on while a thread writes, and what is written is what was there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import history, trainer, weights_equal

from drivetrain import CheckpointError, Trainer, TrainerCallback

SETTINGS: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 5,
    "max_steps": 20,
    "logging_steps": 3,
    "gradient_accumulation_steps": 2,
    "dropout": 0.1,
}


class Slow(Trainer):
    """Writes for a while, and notes how far training was when it began and when it ended."""

    spans: list[tuple[int, int]]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        began = self.state.global_step
        deadline = time.monotonic() + 20
        while self.state.global_step < began + 2 and began < 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        super()._save(output_dir, state_dict)
        self.spans.append((began, self.state.global_step))


def test_training_goes_on_and_the_checkpoint_is_of_its_step(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", **SETTINGS)
    plain.train()
    slow = trainer(tmp_path / "slow", cls=Slow, save_async=True, **SETTINGS)
    slow.spans = []
    slow.train()
    assert all(ended >= began + 2 for began, ended in slow.spans if began < 20)
    assert weights_equal(plain.model, slow.model)
    for step in (5, 10, 15, 20):
        resumed = trainer(tmp_path / f"from-{step}", **SETTINGS)
        resumed.train(resume_from_checkpoint=str(tmp_path / "slow" / f"checkpoint-{step}"))
        assert weights_equal(plain.model, resumed.model)
        assert history(resumed) == history(plain)


def test_listeners_are_told_of_whole_checkpoints_in_order(tmp_path: Path) -> None:
    class Told(TrainerCallback):
        whole: list[str] = []

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.whole = sorted(
                path.name for path in Path(args.output_dir).glob("checkpoint-*/manifest.json")
            )
            self.calls = getattr(self, "calls", 0) + 1

    told = Told()
    trainer(tmp_path, callbacks=[told], save_async=True, save_total_limit=2, **SETTINGS).train()
    assert told.calls == 4
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-20"]


def test_an_error_of_the_writer_reaches_the_run(tmp_path: Path) -> None:
    class Broken(Trainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            raise OSError(28, "No space left on device")

    made = trainer(tmp_path, cls=Broken, save_async=True, **SETTINGS)
    with pytest.raises(CheckpointError, match="checkpoint-5"):
        made.train()
    assert made.state.global_step < 20
    assert not list(tmp_path.glob("checkpoint-*"))
