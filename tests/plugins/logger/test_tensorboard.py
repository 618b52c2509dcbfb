"""TensorBoard: what is written is read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.logged import TOKEN, Net
from torch import nn

from drivetrain import Trainer, TrainerCallback, TrainingArguments, hookimpl

pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def trainer(folder: Path, model: nn.Module | None = None, callbacks: Any = (), **arguments: Any) -> Trainer:
    data = [{"x": torch.ones(4) * i, "labels": i % 2} for i in range(32)]
    args = TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 2,
            "logging_steps": 2,
            "evaluation_strategy": "epoch",
            "save_strategy": "no",
            "report_to": "tensorboard",
            "logging_dir": str(folder / "events"),
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        },
    )
    return Trainer(model or Net(), args, train_dataset=data, eval_dataset=data, callbacks=callbacks)


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def text(events: EventAccumulator, name: str) -> str:
    tensor = events.Tensors(f"{name}/text_summary")[0].tensor_proto
    return b"".join(tensor.string_val).decode()


def expected(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The log, as TensorBoard names it."""
    made: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name, value in row.items():
            if name == "step":
                continue
            stage = "eval" if name.startswith("eval_") else "train"
            name = f"{stage}/{name.removeprefix('eval_')}"
            made.setdefault(name, []).append((row["step"], value))
    return made


def test_every_row_is_there_under_the_documented_name(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train()
    events = read(tmp_path / "events")
    wanted = expected(made.state.log_history)
    assert {"train/loss", "train/learning_rate", "train/epoch", "train/total_flos", "eval/loss"} <= set(
        wanted
    )
    assert set(events.Tags()["scalars"]) == set(wanted)
    for name, points in wanted.items():
        found = [(point.step, point.value) for point in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in points]
        assert [value for _, value in found] == pytest.approx([value for _, value in points], rel=1e-6)


def test_arguments_are_text_and_the_token_is_nowhere(tmp_path: Path) -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"width": 4}

        def to_json_string(self) -> str:
            return json.dumps(self.to_dict())

    model = Net()
    model.config = Config()
    trainer(tmp_path, model, learning_rate=0.125, hub_token=TOKEN).train()
    events = read(tmp_path / "events")
    assert json.loads(text(events, "args"))["learning_rate"] == 0.125
    assert json.loads(text(events, "model_config")) == {"width": 4}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_an_evaluation_after_training_is_logged_too(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train()
    before = len(read(tmp_path / "events").Scalars("eval/loss"))
    made.evaluate()
    assert len(read(tmp_path / "events").Scalars("eval/loss")) == before + 1


def test_a_resume_hides_what_was_lost(tmp_path: Path) -> None:
    made = trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=8, logging_steps=1)
    made.train()
    again = trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=8, logging_steps=1)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    steps = [point.step for point in read(tmp_path / "events").Scalars("train/loss")]
    assert steps == list(range(1, 9))


def test_what_is_no_number_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            adding.log({"note": "a word", "fine": 1.0})

    adding = trainer(tmp_path, callbacks=[Adds], max_steps=4)
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        adding.train()
    said = [record.getMessage() for record in caplog.records if "numbers alone" in record.getMessage()]
    assert said == ["Logger 'tensorboard' takes numbers alone, so 'train/note' (str) is not in it."]
    events = read(tmp_path / "events")
    assert len(events.Scalars("train/fine")) == 4


def test_a_failure_is_said_once_counted_and_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events").write_text("a file stands where the folder should be")
    made = trainer(tmp_path)
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        output = made.train()
    assert output.global_step == 8
    said = [record.getMessage() for record in caplog.records if "tensorboard" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith(
        "Logger 'tensorboard' failed, and the run goes on without what it could not write: File"
    )
    rows = len(made.state.log_history)
    assert said[1] == (
        f"Logger 'tensorboard' has lost {rows} of {rows} rows of the log: {rows} could not be written."
    )


def test_an_error_that_ends_the_run_leaves_a_whole_file(tmp_path: Path) -> None:
    class Fails:
        name = "fails"

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            if run.state.global_step == 5:
                raise RuntimeError("enough")

    made = trainer(tmp_path)
    made._plugins.append(Fails())
    with pytest.raises(RuntimeError, match="enough"):
        made.train()
    assert [point.step for point in read(tmp_path / "events").Scalars("train/loss")] == [2, 4]


def test_nan_is_written_as_it_is(tmp_path: Path) -> None:
    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            adding.log({"strange": math.nan})

    adding = trainer(tmp_path, callbacks=[Adds], max_steps=1)
    adding.train()
    assert math.isnan(read(tmp_path / "events").Scalars("train/strange")[0].value)


def test_none_means_none(tmp_path: Path) -> None:
    trainer(tmp_path, report_to="none").train()
    assert not (tmp_path / "events").exists()
