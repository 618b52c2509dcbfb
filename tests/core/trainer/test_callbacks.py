"""The documented callbacks: order, signatures, control, and those of transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import accuracy, history, rows, trainer, weights_equal

from drivetrain import EarlyStoppingCallback, TrainerCallback, TrainerControl
from drivetrain.callbacks import CALLBACK_EVENTS

KEYWORDS = {"model", "tokenizer", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader", "run"}


class Everything(TrainerCallback):
    """Notes every event with its keywords."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, set[str]]] = []


def _noted(event: str) -> Any:
    def method(self: Everything, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert isinstance(control, TrainerControl)
        self.seen.append((event, set(kwargs)))

    return method


for _event in CALLBACK_EVENTS:
    setattr(Everything, _event, _noted(_event))


def test_every_event_with_its_keywords(tmp_path: Path) -> None:
    heard = Everything()
    made = trainer(
        tmp_path, callbacks=[heard], max_steps=2, gradient_accumulation_steps=2, logging_steps=1, save_steps=1,
        evaluation_strategy="steps", eval_steps=2,
    )  # fmt: skip
    made.train()
    made.predict(rows(8))
    extra = {"on_log": {"logs"}, "on_evaluate": {"metrics"}, "on_predict": {"metrics"}}
    assert {event for event, _ in heard.seen} == set(CALLBACK_EVENTS)
    for event, keywords in heard.seen:
        assert keywords == KEYWORDS | extra.get(event, set())


@pytest.mark.parametrize("event", CALLBACK_EVENTS)
def test_the_handlers_calls_for_scripts(tmp_path: Path, event: str) -> None:
    """`callback_handler.on_x(args, state, control, ...)` calls the callbacks and returns the control."""

    class Other(TrainerCallback):
        pass

    mine = TrainerControl(should_epoch_stop=True)
    setattr(Other, event, lambda self, args, state, control, **kwargs: mine)
    made = trainer(tmp_path, callbacks=[Other])
    value = {
        "on_log": [{"loss": 1.0}],
        "on_evaluate": [{"eval_loss": 1.0}],
        "on_predict": [{"test_loss": 1.0}],
    }.get(event, [])
    control = TrainerControl()
    assert getattr(made.callback_handler, event)(made.args, made.state, control, *value) is mine


def test_the_flags_that_an_event_settles_are_cleared(tmp_path: Path) -> None:
    handler = trainer(tmp_path).callback_handler
    args, state = trainer(tmp_path).args, trainer(tmp_path).state
    every = dict.fromkeys(vars(TrainerControl()), True)
    cleared = {
        "on_train_begin": {"should_training_stop"},
        "on_epoch_begin": {"should_epoch_stop"},
        "on_step_begin": {"should_log", "should_evaluate", "should_save"},
        "on_save": {"should_save"},
    }
    for event, names in cleared.items():
        control = getattr(handler, event)(args, state, TrainerControl(**every))
        assert {name for name, value in vars(control).items() if not value} == names
    assert not handler.on_log(args, state, TrainerControl(**every), {}).should_log
    assert not handler.on_evaluate(args, state, TrainerControl(**every), {}).should_evaluate


def test_callbacks_are_called_in_their_order_and_may_replace_the_control(tmp_path: Path) -> None:
    order: list[str] = []

    class First(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            order.append("first")
            return TrainerControl(should_training_stop=state.global_step == 2)

    class Second(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            order.append("second" if not control.should_training_stop else "second sees the stop")

    made = trainer(tmp_path, callbacks=[First, Second()], max_steps=5)
    made.train()
    assert order == ["first", "second", "first", "second sees the stop"]
    assert made.state.global_step == 2


def test_a_callback_may_clear_what_is_due(tmp_path: Path) -> None:
    class Quiet(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log = control.should_save = False

    made = trainer(tmp_path, callbacks=[Quiet], max_steps=4, logging_steps=1, save_steps=1)
    made.train()
    assert [row for row in made.state.log_history if "loss" in row] == []
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_a_callback_may_stop_an_epoch(tmp_path: Path) -> None:
    class Short(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % 4 == 0:
                control.should_epoch_stop = True

    made = trainer(tmp_path, callbacks=[Short], num_train_epochs=3)
    made.train()
    assert made.state.global_step == 12


def test_adding_and_removing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(tmp_path, max_steps=1)
    heard = Everything()
    made.add_callback(heard)
    made.add_callback(Everything)
    assert "A Everything is among the callbacks already" in caplog.text
    assert made.pop_callback(Everything) is heard
    made.remove_callback(Everything)
    assert made.pop_callback(Everything) is None
    with pytest.raises(ValueError):
        made.remove_callback(heard)
    made.train()
    assert heard.seen == []


def test_a_callback_added_while_training_is_called(tmp_path: Path) -> None:
    heard = Everything()

    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                made.add_callback(heard)

    made = trainer(tmp_path, callbacks=[Adds], max_steps=4)
    made.train()
    assert [event for event, _ in heard.seen].count("on_step_end") == 2


def test_log_before_training_reaches_the_callbacks(tmp_path: Path) -> None:
    heard = Everything()
    trainer(tmp_path, callbacks=[heard]).log({"note": 1.0})
    assert [event for event, _ in heard.seen] == ["on_init_end", "on_log"]


# -- those of transformers --------------------------------------------------------------------------------


def test_early_stopping_of_transformers_stops_where_ours_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    values: dict[str, Any] = {
        "max_steps": 20, "learning_rate": 0.5, "evaluation_strategy": "steps", "eval_steps": 1, "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "compute_metrics": accuracy,
    }  # fmt: skip
    ours = trainer(tmp_path / "ours", callbacks=[EarlyStoppingCallback(2)], **values)
    ours.train()
    theirs = trainer(tmp_path / "theirs", callbacks=[transformers.EarlyStoppingCallback(2)], **values)
    theirs.train()
    assert ours.state.global_step == theirs.state.global_step < 20
    assert history(ours) == history(theirs)
    assert weights_equal(ours.model, theirs.model)
    # Its counter goes into checkpoints, as ours does.
    if hasattr(transformers.EarlyStoppingCallback, "state"):
        again = trainer(tmp_path / "again", callbacks=[transformers.EarlyStoppingCallback(2)], **values)
        step = theirs.state.global_step
        again.train(resume_from_checkpoint=str(tmp_path / "theirs" / f"checkpoint-{step - 1}"))
        assert again.state.global_step == step


def test_printer_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    made = trainer(tmp_path, callbacks=[transformers.PrinterCallback], max_steps=2, logging_steps=1)
    made.pop_callback(
        next(c for c in made.callback_handler.callbacks if type(c).__module__.startswith("drivetrain_"))
    )
    made.train()
    assert capsys.readouterr().out.count("'loss'") == 2


def test_progress_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = trainer(tmp_path, callbacks=[transformers.ProgressCallback], max_steps=2, logging_steps=1)
    made.train()
    made.evaluate()


def test_a_callback_class_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Theirs(transformers.TrainerCallback):  # type: ignore[name-defined,misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step >= 2:
                control.should_training_stop = True
            return control

    made = trainer(tmp_path, callbacks=[Theirs], max_steps=5)
    made.train()
    assert made.state.global_step == 2
    # What it does not override is not called: it costs nothing.
    assert len(made.callback_handler.listening["on_step_begin"]) == 0


def test_trainer_state_is_read_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trainer(tmp_path, max_steps=2, save_steps=2).train()
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = transformers.TrainerState.load_from_json(str(path))
    assert state.global_step == 2
    assert json.loads(path.read_text())["max_steps"] == 2


def test_a_state_of_tensors(tmp_path: Path) -> None:
    class Holds(TrainerCallback):
        def __init__(self) -> None:
            self.value = torch.zeros(2)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.value = self.value + 1

        def save_state(self) -> Any:
            return {"value": self.value}

        def load_state(self, state: Any) -> None:
            self.value = state["value"]

    trainer(tmp_path, callbacks=[Holds], max_steps=4, save_steps=2).train()
    again = Holds()
    trainer(tmp_path, callbacks=[again], max_steps=4, save_steps=2).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert again.value.tolist() == [4.0, 4.0]
