"""save_on_exception: what is written after an error resumes as if there had been none, or nothing is written."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.faults import SETTINGS, At, BreaksInTheUpdate, Counts, Fault, Net, Rows
from support.toy import history, rows, trainer, weights_equal

from drivetrain import Trainer, TrainerCallback


def make(folder: Path, fault: tuple[str, int] | None = None, **more: Any) -> Trainer:
    torch.manual_seed(1)
    made: Trainer = trainer(folder, model=Net(fault), plugins=[Counts()], **{**SETTINGS, **more})
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    made = make(tmp_path_factory.mktemp("whole"))
    made.train()
    return made


def assert_resumes(folder: Path, step: int, whole: Trainer) -> None:
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    resumed = make(folder)
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(whole)
    assert weights_equal(resumed.model, whole.model)
    assert resumed._plugins[0].begun == whole._plugins[0].begun


@pytest.mark.parametrize("save_async", [False, True])
@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (("forward", 12), 5),  # the second micro-batch of the sixth update
        (("backward", 12), 5),
        (("forward", 11), 5),  # its first
        (
            ("backward", 31),
            15,
        ),  # in the second epoch; the thirteenth batch of the first was the first of an update
        (("memory", 6), 2),
    ],
)
def test_an_error_in_the_model(
    tmp_path: Path,
    whole: Trainer,
    caplog: pytest.LogCaptureFixture,
    fault: tuple[str, int],
    step: int,
    save_async: bool,
) -> None:
    with pytest.raises((Fault, torch.OutOfMemoryError)):
        make(tmp_path, fault, save_async=save_async).train()
    assert f"save_on_exception: {tmp_path}/checkpoint-{step}, of the last update, is written." in caplog.text
    assert_resumes(tmp_path, step, whole)


def test_an_error_in_the_data(tmp_path: Path, whole: Trainer) -> None:
    data = Rows(rows())
    data.fails = 70  # in the ninth batch, which is fetched before the eighth is trained on
    with pytest.raises(Fault):
        make(tmp_path, data=data).train()
    assert_resumes(tmp_path, 3, whole)


@pytest.mark.parametrize("event", ["on_step_begin", "on_substep_end"])
def test_an_error_in_a_callback(tmp_path: Path, whole: Trainer, event: str) -> None:
    with pytest.raises(Fault):
        make(tmp_path, callbacks=[At(event, 7)]).train()
    assert_resumes(tmp_path, 7, whole)


@pytest.mark.parametrize(
    ("fault", "more", "why"),
    [
        (("forward", 1), {}, "no update has been done since training began"),
        (("weights", 8), {}, "the weights have been changed since the update"),
        (None, {"callbacks": [At("on_step_end", 3)]}, "the error came before all that was due after the update was"),
        (None, {"callbacks": [At("on_log", 4)]}, "the error came before all that was due after the update was done"),
        # A batch was left over at the end of the first epoch: there is a gradient that nobody has copied.
        (None, {"callbacks": [At("on_epoch_begin", 6)]} , "the error came before"),
        (None, {"optim": BreaksInTheUpdate}, "the error came in the middle of an update"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_not_written(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: tuple[str, int] | None,
    more: dict[str, Any],
    why: str,
) -> None:
    with pytest.raises(Fault):
        make(tmp_path, fault, **more).train()
    assert f"is written, because {why}" in caplog.text
    assert not list(tmp_path.glob("checkpoint-*"))


def test_one_that_stands_is_not_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Fault):
        make(tmp_path, ("forward", 12), save_steps=5).train()
    assert f"The checkpoint of the last update is written already: {tmp_path}/checkpoint-5." in caplog.text


def test_a_smaller_batch_is_tried_first(tmp_path: Path) -> None:
    """auto_find_batch_size begins anew: a checkpoint of the attempt before would be in its way."""
    made = make(tmp_path, ("memory", 6), auto_find_batch_size=True, dataloader_drop_last=True)
    made.model.fault = ("memory", 6)
    made.train()
    assert not (tmp_path / "checkpoint-2").exists()


def test_without_it_an_error_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Fault):
        make(tmp_path, ("forward", 12), save_on_exception=False).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_failure_to_write_hides_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(Trainer):
        def save_model(self, *args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

    torch.manual_seed(1)
    with pytest.raises(Fault):
        trainer(tmp_path, model=Net(("forward", 12)), cls=Breaks, **SETTINGS).train()
    assert f"save_on_exception: {tmp_path}/checkpoint-5 could not be written: " in caplog.text


def test_a_signal_comes_first(tmp_path: Path) -> None:
    """One checkpoint, and the end that a signal has."""

    class Tells(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        make(tmp_path, callbacks=[Tells]).train()
    assert caught.value.code == 75
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
