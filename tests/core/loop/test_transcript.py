"""The exact transcript of a run, and that the timeline in `hookspecs` tells the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer

from drivetrain import ConfigurationError, hookimpl, hookspecs
from drivetrain.hookspecs import EVENTS, SPECS

HOOKS = [name for spec in SPECS for name in vars(spec) if not name.startswith("_")]
EXTRA = {
    "on_log": "logs",
    "on_evaluate": "metrics",
    "on_predict": "metrics",
    "on_save": "checkpoint",
    "on_exception": "error",
    "on_micro_batch": "inputs",
    "on_stage_begin": "stage",
    "on_stage_end": "stage, metrics",
}


def recorder() -> Any:
    """A plugin that listens to every event, and notes it with the update and what it was given."""

    def method(name: str) -> Any:
        space: dict[str, Any] = {}
        extra = EXTRA.get(name)
        listed = f", {extra}" if extra else ""
        exec(f"def {name}(self, run{listed}):\n    self.note({name!r}, run{listed})", space)
        return hookimpl(space[name])

    def note(self: Any, name: str, run: Any, value: Any = None, metrics: Any = None) -> None:
        entry = f"{name} {run.state.global_step}"
        if name == "on_log":
            entry += " " + min(
                key for key in value if key not in ("epoch", "learning_rate", "grad_norm", "total_flos")
            )
        if name.startswith("on_stage"):
            entry += f" {value}"
        if name == "on_micro_batch":
            entry += f" {len(value['x'])}"
        if name == "on_save":
            entry += f" {Path(value).name}"
        self.seen.append(entry)

    body: dict[str, Any] = {name: method(name) for name in EVENTS} | {"note": note}
    body["save_state"] = hookimpl(
        lambda self, run: self.seen.append(f"save_state {run.state.global_step}") or {"is": 1}
    )
    body["load_state"] = hookimpl(
        lambda self, run, state: self.seen.append(f"load_state {run.state.global_step} {state}")
    )
    made = type("Recorder", (), body)()
    made.seen = []
    return made


# Five batches an epoch, accumulation two: two updates an epoch, and the fifth batch's gradient goes into the
# first update of the next epoch, whose first batch completes it.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "logging_steps": 2,
    "evaluation_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 3,
}

TRANSCRIPT = """
on_stage_begin 0 init
on_stage_end 0 init
on_init_end 0
on_stage_begin 0 train
on_train_begin 0
on_epoch_begin 0
on_step_begin 0
on_micro_batch 0 4
on_substep_end 0
on_micro_batch 0 4
on_gradients_ready 0
on_step_end 1
on_step_begin 1
on_micro_batch 1 4
on_substep_end 1
on_micro_batch 1 4
on_gradients_ready 1
on_step_end 2
on_log 2 loss
on_step_begin 2
on_micro_batch 2 4
on_substep_end 2
on_epoch_end 2
on_stage_begin 2 eval
on_prediction_step 2
on_prediction_step 2
on_stage_end 2 eval
on_log 2 eval_loss
on_evaluate 2
on_epoch_begin 2
on_step_begin 2
on_micro_batch 2 4
on_gradients_ready 2
on_step_end 3
save_state 3
on_save 3 checkpoint-3
on_micro_batch 3 4
on_substep_end 3
on_step_begin 3
on_micro_batch 3 4
on_gradients_ready 3
on_step_end 4
on_log 4 loss
on_epoch_end 4
on_stage_begin 4 eval
on_prediction_step 4
on_prediction_step 4
on_stage_end 4 eval
on_log 4 eval_loss
on_evaluate 4
on_stage_end 4 train
on_log 4 train_loss
on_train_end 4
"""


def expected(text: str) -> list[str]:
    return text.strip().splitlines()


def build(folder: Path, **values: Any) -> tuple[Any, Any]:
    heard = recorder()
    made = trainer(folder, data=rows(20), eval_dataset=rows(8), plugins=[heard], **{**SETTINGS, **values})
    return made, heard


def test_the_transcript_of_a_run(tmp_path: Path) -> None:
    made, heard = build(tmp_path)
    made.train()
    assert heard.seen == expected(TRANSCRIPT)


def test_the_transcript_of_a_resumed_run(tmp_path: Path) -> None:
    build(tmp_path)[0].train()
    made, heard = build(tmp_path)
    made.train(resume_from_checkpoint=True)
    whole = expected(TRANSCRIPT)
    rest = whole[whole.index("on_save 3 checkpoint-3") + 1 :]
    # A resumed run begins, and goes on in the middle of its epoch.
    assert heard.seen == [
        *whole[: whole.index("on_train_begin 0")],
        "load_state 3 {'is': 1}",
        "on_train_begin 3",
        "on_epoch_begin 3",
        *rest,
    ]


def test_the_transcript_of_evaluate_and_predict_alone(tmp_path: Path) -> None:
    made, heard = build(tmp_path)
    heard.seen.clear()
    made.evaluate()
    batches = ["on_prediction_step 0"] * 2
    assert heard.seen == [
        "on_stage_begin 0 eval", *batches, "on_stage_end 0 eval", "on_log 0 eval_loss", "on_evaluate 0"
    ]  # fmt: skip
    heard.seen.clear()
    made.predict(rows(5))
    assert heard.seen == ["on_stage_begin 0 test", *batches, "on_stage_end 0 test", "on_predict 0"]


def test_the_transcript_of_an_error(tmp_path: Path) -> None:
    data = rows(20)
    data[-1]["x"] = torch.zeros(7)
    heard = recorder()
    made = trainer(tmp_path, data=data, plugins=[heard], **SETTINGS)
    with pytest.raises(ConfigurationError, match="cannot be stacked"):
        made.train()
    assert heard.seen[-1].startswith("on_exception")
    assert "on_train_end" not in " ".join(heard.seen)


class Transform:
    def __init__(self, place: str) -> None:
        self.place = place
        self.name = place

    @hookimpl
    def transform_model(self, run: Any, model: Any) -> None: ...


def timeline() -> list[str]:
    """The hooks in the order in which the docstring of `hookspecs` draws them; places of a transform told apart."""
    text = str(hookspecs.__doc__).split("evaluate() and predict() alone")[0]
    text = re.sub(r'transform_model \(place "(\w+)"\)', r"transform_model_\1", text)
    return re.findall(r"\b(?:(?:on|make|save|load)_[a-z_]+|transform_model_\w+)\b", text)


def test_the_drawn_timeline_is_that_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `--trace-hooks` prints of a real run has every hook's first call in the order that is drawn."""
    settings = {
        **SETTINGS,
        "save_steps": 1,
        "logging_steps": 1,
        "evaluation_strategy": "steps",
        "eval_steps": 1,
    }
    values: dict[str, Any] = {"data": rows(20), "eval_dataset": rows(8), "trace_hooks": True, **settings}
    plugins = lambda: [recorder(), Transform("before_wrap"), Transform("after_prepare")]  # noqa: E731
    trainer(tmp_path, plugins=plugins(), **values).train()
    capsys.readouterr()
    trainer(tmp_path, plugins=plugins(), **values).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-1")
    )
    called: list[str] = []
    for line in capsys.readouterr().err.splitlines():
        words = line.split()
        if words[:2] != ["[hooks]", "step"] or words[3] == "on_init_end" or words[3].startswith("on_stage"):
            continue  # of a stage, and not of the timeline in it
        name = words[3]
        if name == "transform_model":
            name += "_" + words[-1].removeprefix("transform:")
        if name not in called:
            called.append(name)
    drawn = [name for name in dict.fromkeys(timeline()) if name != "make_hub"]
    # A row of the log, an evaluation and a checkpoint are drawn by what they are for, in the order served.
    assert {name for name in drawn if name not in called} == set()
    assert [name for name in called if name not in ("save_state", "on_prediction_step")] == [
        name for name in drawn if name not in ("save_state", "on_prediction_step")
    ]
    assert called.index("save_state") == called.index("on_save") - 1
    assert called.index("on_prediction_step") < called.index("on_evaluate")


def test_every_hook_stands_in_the_docstring() -> None:
    text = str(hookspecs.__doc__)
    missing = [name for name in HOOKS if name not in text]
    # Outside of a run's own timeline; their docstrings say when they are called.
    assert set(missing) <= {"on_init_end", "make_launcher", "make_hub", "make_search"}
