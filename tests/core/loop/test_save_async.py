"""save_async: the run goes on while a thread writes, and what is written is what was there."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import accuracy, history, trainer, weights_equal

from drivetrain import CheckpointError, Trainer, TrainerCallback, hookimpl
from drivetrain.checkpoint import checkpoints, validate

SETTINGS: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 5,
    "max_steps": 20,
    "logging_steps": 3,
    "gradient_accumulation_steps": 2,
    "dropout": 0.1,
}


class Slow(Trainer):
    """Writes until training is two updates past the checkpoint's, and notes how far it was then."""

    spans: list[tuple[int, int]]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Not the step of now: the thread may begin so late that the run waits for it at the next save.
        step = 5 * (len(self.spans) + 1)
        deadline = time.monotonic() + 20
        while self.state.global_step < step + 2 and step < 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        super()._save(output_dir, state_dict)
        self.spans.append((step, self.state.global_step))


def test_training_goes_on_and_the_checkpoint_is_of_its_step(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", **SETTINGS)
    plain.train()
    slow = trainer(tmp_path / "slow", cls=Slow, save_async=True, **SETTINGS)
    slow.spans = []
    slow.train()
    assert [step for step, _ in slow.spans] == [5, 10, 15, 20]
    assert all(ended >= step + 2 for step, ended in slow.spans if step < 20)
    assert weights_equal(plain.model, slow.model)
    for step in (5, 10, 15, 20):
        resumed = trainer(tmp_path / f"from-{step}", **SETTINGS)
        resumed.train(resume_from_checkpoint=str(tmp_path / "slow" / f"checkpoint-{step}"))
        assert weights_equal(plain.model, resumed.model)
        assert history(resumed) == history(plain)


def test_listeners_are_told_of_whole_checkpoints_in_order(tmp_path: Path) -> None:
    class Told(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.append(state.global_step)
            # The folder as callbacks of others find it: they are not told its name.
            assert validate(str(Path(args.output_dir) / f"checkpoint-{state.global_step}")) is None

    told = Told()
    made = trainer(tmp_path, callbacks=[told], save_async=True, save_total_limit=2, **SETTINGS)
    made.train()
    assert told.steps == [5, 10, 15, 20]
    assert made.state.global_step == 20
    assert made._writer is None  # and the memory of its copies is free
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


class Held(Trainer):
    """Its checkpoints are not finished before `let_go` is set, or 20 seconds are over."""

    def __init__(self, **kwargs: Any) -> None:
        self.let_go = threading.Event()
        super().__init__(**kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self.let_go.wait(20)


def whole(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, which must all be whole, and have nothing hidden beside them."""
    found = checkpoints(str(folder))
    assert all(validate(path) is None for _, path in found)
    assert len({path.name for path in folder.iterdir()} - {"drivetrain-record.jsonl"}) == len(found)
    return [step for step, _ in found]


class Ends(TrainerCallback):
    """Raises at an update while a checkpoint is being written, and lets it be finished in a moment."""

    def __init__(self, error: type[BaseException], step: int = 7) -> None:
        self.error, self.step = error, step
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            assert self.trainer._writer.under_way is not None
            assert not self.trainer._writer.is_idle()
            self.step = -1
            threading.Timer(0.2, self.trainer.let_go.set).start()
            raise self.error("on purpose")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_ends_the_run_leaves_the_checkpoint_under_way_whole(
    tmp_path: Path, error: type[BaseException]
) -> None:
    plain = trainer(tmp_path / "plain", **SETTINGS)
    plain.train()
    ends = Ends(error)
    made = trainer(tmp_path / "run", cls=Held, callbacks=[ends], save_async=True, **SETTINGS)
    ends.trainer = made
    with pytest.raises(error, match="on purpose"):
        made.train()
    assert whole(tmp_path / "run") == [5]
    # The same trainer goes on, and another one, as if nothing had been.
    other = trainer(tmp_path / "run", save_async=True, **SETTINGS)
    for again in (other, made):
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
        assert weights_equal(plain.model, again.model)
        assert whole(tmp_path / "run") == [5, 10, 15, 20]


def test_an_error_of_the_writer_is_said_when_the_run_ends_by_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Held):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            self.let_go.wait(20)
            raise OSError(28, "No space left on device")

    ends = Ends(ValueError)
    made = trainer(tmp_path, cls=Breaks, callbacks=[ends], save_async=True, **SETTINGS)
    ends.trainer = made
    with pytest.raises(ValueError, match="on purpose"):
        made.train()
    assert "checkpoint-5, under way when the run ended, was not written" in caplog.text
    assert whole(tmp_path) == []


def test_the_batch_is_halved_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    ends = Ends(MemoryError)
    values: dict[str, Any] = {**SETTINGS, "auto_find_batch_size": True, "per_device_train_batch_size": 8}
    made = trainer(tmp_path / "run", cls=Held, callbacks=[ends], save_async=True, **values)
    ends.trainer = made
    made.train()
    assert made._train_batch_size == 4
    assert whole(tmp_path / "run") == [5, 10, 15, 20]
    plain = trainer(tmp_path / "plain", **{**SETTINGS, "per_device_train_batch_size": 4})
    plain.train()
    assert weights_equal(plain.model, made.model)


class Best(TrainerCallback):
    """What is held for the best, at each update."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((state.best_metric, state.best_model_checkpoint))


def test_the_best_is_one_that_was_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that failed is the best until its failure is told, at the next save; then the one before is."""

    class Second(Trainer):
        saves = 0

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, state_dict)
            self.saves += 1
            if self.saves == 2:
                raise OSError(28, "No space left on device")

    best = Best()
    values: dict[str, Any] = {
        **SETTINGS,
        "evaluation_strategy": "steps",
        "eval_steps": 5,
        "load_best_model_at_end": True,
    }
    values |= {"on_save_error": "warn", "logging_strategy": "no", "save_total_limit": 1}
    made = trainer(
        tmp_path, cls=Second, callbacks=[best], save_async=True, compute_metrics=accuracy, **values
    )
    losses = iter([0.5, 0.4, 0.45, 0.6])
    evaluate = made.evaluate
    made.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(losses)}  # type: ignore[method-assign]
    made.train()
    name = str(tmp_path / "checkpoint-")
    assert best.seen[5] == (0.5, name + "5")
    assert best.seen[10] == (0.4, name + "10")
    assert best.seen[15] == (
        0.45,
        name + "15",
    )  # the second save has failed: the third is compared with the first
    assert made.state.best_model_checkpoint == name + "15"
    assert "checkpoint-10 was not written" in caplog.text
    assert whole(tmp_path) == [15]


def test_an_override_that_writes_the_model_in_training_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread calls it while the model is trained: the checkpoint has the weights of its step all the same."""
    plain = trainer(tmp_path / "plain", **SETTINGS)
    plain.train()

    class Careless(Slow):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, dict(self.model.state_dict()))

    made = trainer(tmp_path / "run", cls=Careless, save_async=True, **SETTINGS)
    made.spans = []
    made.train()
    assert "What save_model wrote into checkpoint-5 are not the weights of its step" in caplog.text
    again = trainer(tmp_path / "again", **SETTINGS)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    assert weights_equal(plain.model, again.model)
    assert whole(tmp_path / "run") == [5, 10, 15, 20]


class Unpackable:
    """A plugin whose state no checkpoint can hold."""

    @hookimpl
    def save_state(self) -> Any:
        return {"lock": threading.Lock()}


@pytest.mark.parametrize("form", [False, True])
def test_a_state_that_cannot_be_stored_is_refused_with_the_same_words(tmp_path: Path, form: bool) -> None:
    made = trainer(tmp_path, plugins=[Unpackable()], save_async=form, **SETTINGS)
    with pytest.raises(CheckpointError, match=r"\['lock'\] is a _thread.lock and cannot be stored"):
        made.train()


class Moves:
    """A plugin whose state is tensors that it changes in place, in an ordered dictionary."""

    def __init__(self) -> None:
        self.held = OrderedDict(counted=torch.zeros(3))

    @hookimpl
    def on_step_end(self) -> None:
        self.held["counted"] += 1

    @hookimpl
    def save_state(self) -> Any:
        return {"held": self.held}

    @hookimpl
    def load_state(self, state: Any) -> None:
        self.held = state["held"]


def test_the_states_of_plugins_are_of_their_step(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", cls=Slow, plugins=[Moves()], save_async=True, **SETTINGS)
    made.spans = []  # type: ignore[attr-defined]
    made.train()
    for step in (5, 10):
        moves = Moves()
        again = trainer(
            tmp_path / "again", plugins=[moves], **{**SETTINGS, "max_steps": step, "save_strategy": "no"}
        )
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert type(moves.held).__name__ == "OrderedDict"
        assert moves.held["counted"].tolist() == [step] * 3


def test_what_the_log_gains_later_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    made = trainer(tmp_path / "slow", cls=Slow, save_async=True, **{**SETTINGS, "logging_steps": 1})
    made.spans = []  # type: ignore[attr-defined]
    made.train()
    for step in (5, 10):
        state = json.loads((tmp_path / "slow" / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["global_step"] == step
        assert [row["step"] for row in state["log_history"]] == list(range(1, step + 1))
