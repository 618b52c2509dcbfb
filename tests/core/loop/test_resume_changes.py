"""What has changed since a checkpoint: said where it is legitimate, an error where it would corrupt the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer

from drivetrain import ConfigurationError, TrainerCallback


class Lengths(torch.utils.data.Dataset[Any]):
    """Rows of many lengths."""

    def __init__(self, shift: int = 0) -> None:
        self.rows = [row | {"input_ids": [0] * (1 + (7 * i + shift) % 13)} for i, row in enumerate(rows(45))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows dealt to the workers."""

    def __iter__(self) -> Any:
        worker = torch.utils.data.get_worker_info()
        yield from rows(45)[worker.id :: worker.num_workers] if worker else rows(45)


SETTINGS: dict[str, Any] = {
    "max_steps": 10,
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 3,
}


def stopped(folder: Path, at: int = 3, **values: Any) -> str:
    """A checkpoint in the middle of the first epoch of six updates."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step == at

    made = trainer(folder, **{**SETTINGS, "data": rows(45), "callbacks": [Stop()], **values})
    made.train()
    return str(folder / f"checkpoint-{at}")


def resume(folder: Path, checkpoint: str, **values: Any) -> Any:
    made = trainer(folder, **{**SETTINGS, "data": rows(45), **values})
    made.train(resume_from_checkpoint=checkpoint)
    return made


# What was, what is, and what of the error is looked for.
CORRUPTING: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "rows": ({}, {"data": rows(44)}, ["the number of training rows was 45 and is 44", "the middle of an epoch"]),
    "data_seed": (
        {"data_seed": 1}, {"data_seed": 2}, ["data_seed was 1 and is 2", "some twice, some never"],
    ),
    "data_seed set": (
        {}, {"data_seed": 2}, ["the sampler was RandomSampler and is SeededRandomSampler"],
    ),
    "group_by_length": (
        {"data": Lengths()}, {"data": Lengths(), "group_by_length": True},
        ["the sampler was RandomSampler and is LengthGroupedSampler"],
    ),
    "lengths": (
        {"data": Lengths(), "group_by_length": True}, {"data": Lengths(1), "group_by_length": True},
        ["the lengths by which rows are grouped"],
    ),
    "rows of an update": (
        {"data": Lengths(), "group_by_length": True},
        {"data": Lengths(), "group_by_length": True, "gradient_accumulation_steps": 2},
        ["the number of rows of an update was 8 and is 16"],
    ),
    "a stream": ({}, {"data": Stream()}, ["the training data's loader was map and is iterable"]),
    "workers of a stream": (
        {"data": Stream()}, {"data": Stream(), "dataloader_num_workers": 2}, ["dataloader_num_workers was 0 and is 2"],
    ),
    "scheduler": (
        {"lr_scheduler_type": "constant"}, {},
        ["the scheduler was constant (MultiplierLR) and is linear", "would jump from 0.01 to 0.007"],
    ),
    "scheduler of another class": (
        {}, {"lr_scheduler_type": "reduce_lr_on_plateau", "evaluation_strategy": "steps", "eval_steps": 5},
        ["the scheduler was linear (MultiplierLR) and is reduce_lr_on_plateau (ReduceLROnPlateau)"],
    ),
    "warmup": (
        {}, {"warmup_steps": 8},
        ["warmup_steps was 0 and is 8", "jump from 0.007 to 0.00375 at step 3"],
    ),
    "an end that is past": (
        {}, {"max_steps": 2}, ["has come to step 3 and is to end at 2 now (it was 10)", "raise max_steps"],
    ),
    "best": (
        {"evaluation_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"},
        {"evaluation_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss", "greater_is_better": True},
        ["greater_is_better was False and is True", "no comparison with it is true"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CORRUPTING)
def test_what_would_corrupt_the_run_is_an_error(tmp_path: Path, case: str) -> None:
    before, after, sentences = CORRUPTING[case]
    checkpoint = stopped(tmp_path / "run", **before)
    with pytest.raises(ConfigurationError) as caught:
        resume(tmp_path / "again", checkpoint, **after)
    text = str(caught.value)
    for sentence in [*sentences, checkpoint, "allow_resume_changes=True"]:
        assert sentence in text, text
    assert len(caught.value.problems) == 1, text


def test_every_problem_is_told_at_once_and_can_be_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stopped(tmp_path / "run")
    changed = {"data": rows(50), "lr_scheduler_type": "cosine"}
    with pytest.raises(ConfigurationError) as caught:
        resume(tmp_path / "again", checkpoint, **changed)
    assert len(caught.value.problems) == 2
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made = resume(tmp_path / "allowed", checkpoint, allow_resume_changes=True, **changed)
    assert made.state.global_step == 10
    assert "the number of training rows was 45 and is 50" in caplog.text
    assert "the scheduler was linear" in caplog.text


def test_the_data_may_change_between_epochs_and_where_the_epoch_begins_anew(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path / "run", at=6, save_steps=6)
    assert resume(tmp_path / "again", checkpoint, data=rows(50)).state.global_step == 10
    middle = stopped(tmp_path / "middle")
    anew = resume(tmp_path / "anew", middle, data=rows(50), ignore_data_skip=True)
    assert anew.state.global_step == 10


def test_loss_reduction_may_not_change_within_an_update(tmp_path: Path) -> None:
    values = {
        **SETTINGS,
        "gradient_accumulation_steps": 4,
        "save_strategy": "epoch",
        "max_steps": 4,
        "data": rows(45),
    }
    trainer(tmp_path / "run", **values).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")  # of six batches two are left over at the epoch's end
    with pytest.raises(ConfigurationError, match="carries gradients of an unfinished update"):
        resume(tmp_path / "again", checkpoint, loss_reduction="tokens", **values)


def test_what_is_legitimate_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = stopped(tmp_path / "run")
    with caplog.at_level(logging.WARNING, "drivetrain"):
        made = resume(
            tmp_path / "again",
            checkpoint,
            max_steps=20,
            learning_rate=0.5,
            seed=7,
            label_smoothing_factor=0.1,
        )
    assert made.state.global_step == 20
    for clause in (
        "max_steps was 10 and is 20",
        "the run had 10 updates and has 20, and the learning rate goes on from 0.007 at 0.0085",
        "learning_rate was 0.01 and is 0.5 (without effect: the optimizer's and the scheduler's state have theirs)",
        "seed was 42 and is 7 (without effect: the random states are those of the checkpoint)",
        "label_smoothing_factor was 0.0 and is 0.1",
    ):
        assert clause in caplog.text
    assert made.optimizer.param_groups[0]["initial_lr"] == 0.01


def test_a_model_of_another_class_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from support.toy import Toy

    class Other(Toy):
        pass

    checkpoint = stopped(tmp_path / "run")
    with caplog.at_level(logging.WARNING, "drivetrain"):
        resume(tmp_path / "again", checkpoint, model=Other())
    assert "the model was a support.toy:Toy and is a " in caplog.text


def test_a_callback_that_left_a_state_and_is_gone_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Counter(TrainerCallback):
        def save_state(self) -> dict[str, Any]:
            return {"seen": 1}

    made = trainer(tmp_path / "run", **SETTINGS, data=rows(45), callbacks=[Counter()])
    made.train()
    with caplog.at_level(logging.WARNING, "drivetrain"):
        resume(tmp_path / "again", str(tmp_path / "run" / "checkpoint-3"))
    assert "a state of the callback 'Counter', which no callback takes now" in caplog.text


@pytest.mark.parametrize("after", ["adamw_hf", "adafactor", "sgd", "adagrad", "rmsprop", "muon"])
def test_an_optimizer_of_another_kind_is_refused(tmp_path: Path, after: str) -> None:
    from drivetrain import DrivetrainError

    checkpoint = stopped(tmp_path / "run")
    with pytest.raises(DrivetrainError, match="optimizer"):
        resume(tmp_path / "again", checkpoint, optim=after)


def test_a_run_leaves_no_layout_behind(tmp_path: Path) -> None:
    """A loader that a script asks for after a run groups by the arguments as they are then."""
    made = trainer(tmp_path, **SETTINGS, data=Lengths(), group_by_length=True)
    made.train()
    assert made._layout is None
    made.args.gradient_accumulation_steps = 2
    assert made.get_train_dataloader().batch_sampler.sampler.batch_size == 16
