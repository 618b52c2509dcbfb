"""`Trainer(plugins=[...])`: objects of the user's own for slots, transforms and listeners; errors name them."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.strangers import Site
from support.toy import Toy, rows, trainer, weights_equal

from drivetrain import (
    ConfigurationError,
    OptimizerFactory,
    PrecisionPolicy,
    SchedulerFactory,
    Trainer,
    TrainingArguments,
    hookimpl,
)


class HalfRate:
    """A scheduler of the user's own."""

    @hookimpl
    def make_scheduler(self, run: Any) -> SchedulerFactory:
        return SchedulerFactory(
            lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        )


class Plain:
    """An optimizer of the user's own."""

    name = "plain"

    @hookimpl
    def make_optimizer(self, run: Any) -> OptimizerFactory:
        return OptimizerFactory(torch.optim.SGD, {"lr": run.args.learning_rate})


class Double:
    """A precision of the user's own."""

    policy = PrecisionPolicy("double", parameter=torch.float64)

    @hookimpl
    def make_precision(self, run: Any) -> Double:
        return self

    def setup(self, run: Any) -> None: ...

    def autocast(self, device_type: str) -> Any:
        return nullcontext()

    def close(self) -> None: ...


class Scaled:
    """A transform of the user's own: the logits times two."""

    place = "before_wrap"

    @hookimpl
    def transform_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return Twice(model)


class Twice(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return {name: value * 2 for name, value in self.inner(**inputs).items()}


class Counter:
    """A listener of the user's own."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def on_init_end(self, run: Any) -> None:
        self.heard.append("init_end")

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.heard.append(f"step {run.state.global_step}")


def test_slots(tmp_path: Path) -> None:
    made = trainer(tmp_path, plugins=[HalfRate(), Plain()], max_steps=3, logging_steps=1)
    made.train()
    assert type(made.optimizer) is torch.optim.SGD
    assert [row["learning_rate"] for row in made.state.log_history if "loss" in row] == [5e-3] * 3
    assert ("optimizer", "plain", "", "plugins=[...]") in made.run.plan.describe()
    assert ("scheduler", "HalfRate", "", "plugins=[...]") in made.run.plan.describe()


def test_precision(tmp_path: Path) -> None:
    data = [{"x": row["x"].double(), "labels": row["labels"]} for row in rows()]
    made = trainer(tmp_path, plugins=[Double()], data=data, max_steps=2)
    made.train()
    assert all(parameter.dtype == torch.float64 for parameter in made.model.parameters())


def test_two_for_one_slot_name_both(tmp_path: Path) -> None:
    made = trainer(tmp_path, plugins=[HalfRate(), HalfRate()], max_steps=1)
    with pytest.raises(
        ConfigurationError, match=r"Two plugins claim the slot 'scheduler': 'HalfRate' .* and 'HalfRate#2'"
    ):
        made.train()


def test_a_transform_takes_part_in_training(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", max_steps=1, logging_steps=1)
    plain.train()
    made = trainer(tmp_path / "b", plugins=[Scaled()], max_steps=1, logging_steps=1)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(
        2 * plain.state.log_history[0]["loss"], abs=1e-3
    )


def test_listeners_of_one_class_are_all_called(tmp_path: Path) -> None:
    first, second = Counter(), Counter()
    made = trainer(tmp_path, plugins=[first, second], max_steps=2)
    assert first.heard == second.heard == ["init_end"]
    made.train()
    assert first.heard == second.heard == ["init_end", "step 1", "step 2"]


def test_instances_by_the_arguments(tmp_path: Path) -> None:
    heard = Counter()
    args = TrainingArguments(
        str(tmp_path), plugins=[heard], max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    Trainer(Toy(), args, train_dataset=rows()).train()
    assert heard.heard == ["init_end", "step 1"]


def test_an_object_without_hooks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"'object' .* is no plugin: none of its methods bears @drivetrain.hookimpl"
    ):
        trainer(tmp_path, plugins=[object()], max_steps=1)


def test_a_hook_that_takes_what_there_is_not_is_refused(tmp_path: Path) -> None:
    class Wrong:
        @hookimpl
        def on_step_end(self, run: Any, loss: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Callback 'Wrong' is no plugin of drivetrain: .*loss"):
        trainer(tmp_path, plugins=[Wrong()], max_steps=1)


def test_a_hook_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    class Wrong:
        @hookimpl
        def on_step_ended(self, run: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="on_step_ended"):
        trainer(tmp_path, plugins=[Wrong()], max_steps=1)


def test_a_listener_asks_for_what_is_due(tmp_path: Path) -> None:
    class Asker:
        @hookimpl
        def on_step_end(self, run: Any) -> None:
            if run.state.global_step == 2:
                run.request_log()
                run.request_evaluation()
                run.request_save()
            if run.state.global_step == 3:
                run.request_stop("three are enough")

    made = trainer(tmp_path, plugins=[Asker()], max_steps=9, logging_strategy="no", save_strategy="no")
    made.train()
    assert made.state.global_step == 3
    assert made.run.stop_reason == "three are enough"
    assert [sorted(row)[1] for row in made.state.log_history[:2]] == ["learning_rate", "eval_loss"]
    assert (tmp_path / "checkpoint-2").is_dir()


# -- a plugin that raises ------------------------------------------------------------------------------

EVENTS_WITH_EXTRA = {
    "on_log": ", logs",
    "on_evaluate": ", metrics",
    "on_predict": ", metrics",
    "on_save": ", checkpoint",
}
EVENTS = [
    "on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin", "on_substep_end", "on_gradients_ready",
    "on_step_end", "on_log", "on_evaluate", "on_prediction_step", "on_predict", "on_save", "on_epoch_end", "on_train_end",
    "save_state",
]  # fmt: skip


def raising(hook: str) -> Any:
    space: dict[str, Any] = {}
    exec(f"def {hook}(self, run{EVENTS_WITH_EXTRA.get(hook, '')}):\n    raise KeyError('broken')", space)
    return type("Breaker", (), {hook: hookimpl(space[hook])})()


@pytest.mark.parametrize("hook", EVENTS)
@pytest.mark.parametrize("traced", [False, True])
def test_a_plugin_that_raises_names_itself(tmp_path: Path, hook: str, traced: bool) -> None:
    def run() -> None:
        made = trainer(
            tmp_path,
            plugins=[Counter(), raising(hook)],
            max_steps=2,
            gradient_accumulation_steps=2,
            logging_steps=1,
            evaluation_strategy="steps",
            eval_steps=1,
            save_steps=1,
            trace_hooks=traced,
        )
        made.train()
        made.predict(rows(8))

    with pytest.raises(KeyError) as caught:
        run()
    assert caught.value.__notes__ == [f"Raised by the plugin 'callback:Breaker' in its hook {hook}."]


def test_which_of_two_of_a_class_raised_is_told(tmp_path: Path) -> None:
    class Picky:
        def __init__(self, number: int) -> None:
            self.number = number

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            if self.number == 2:
                raise KeyError("broken")

    with pytest.raises(KeyError) as caught:
        trainer(tmp_path, plugins=[Picky(1), Picky(2)], max_steps=1).train()
    assert caught.value.__notes__ == ["Raised by the plugin 'callback:Picky#2' in its hook on_step_end."]


@pytest.mark.parametrize(
    "hook", ["make_strategy", "make_precision", "make_optimizer", "make_scheduler", "transform_model"]
)
def test_a_slot_or_transform_that_raises_names_itself(tmp_path: Path, hook: str) -> None:
    broken = raising(hook)
    with pytest.raises(KeyError) as caught:
        trainer(tmp_path, plugins=[broken], max_steps=1).train()
    kind = hook.removeprefix("make_") if hook != "transform_model" else "transform"
    assert caught.value.__notes__ == [f"Raised by the plugin '{kind}:Breaker' in its hook {hook}."]


def test_a_slot_that_gives_nothing_names_itself(tmp_path: Path) -> None:
    class Empty:
        @hookimpl
        def make_optimizer(self, run: Any) -> None: ...

    with pytest.raises(Exception, match="Optimizer 'Empty' gave nothing from make_optimizer"):
        trainer(tmp_path, plugins=[Empty()], max_steps=1).train()


CALLBACK = """
from drivetrain import PluginInfo, TrainerCallback

INFO = PluginInfo(name="rash", kind="callback", summary="", implementation="rash_stranger:Rash")


class Rash(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyError("broken")
"""


def test_a_documented_callback_that_is_a_plugin_is_enabled_and_names_itself(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("drivetrain-rash", {"callback": {"rash": "rash_stranger:INFO"}}, rash_stranger=CALLBACK)
    (tmp_path / "drivetrain.toml").write_text('[plugins]\nenable = ["rash"]\n')
    monkeypatch.chdir(tmp_path)
    made = trainer(tmp_path / "out", max_steps=3)
    assert "Rash" in made.callback_handler.callback_list
    with pytest.raises(KeyError) as caught:
        made.train()
    assert caught.value.__notes__ == ["Raised by the plugin 'callback:rash' in its hook on_step_end."]


def test_a_callback_chosen_after_the_trainer_was_built_takes_part(tmp_path: Path, capsys: Any) -> None:
    made = trainer(tmp_path, max_steps=1, logging_steps=1, disable_tqdm=False)
    names = made.callback_handler.callback_list
    assert "PrinterCallback" not in names
    made.args.disable_tqdm = True
    made.train()
    assert "PrinterCallback" in made.callback_handler.callback_list


def test_a_callback_that_the_user_removed_stays_removed(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=1)
    made.pop_callback(
        next(c for c in made.callback_handler.callbacks if type(c).__name__ == "PrinterCallback")
    )
    made.train()
    assert "PrinterCallback" not in made.callback_handler.callback_list


def test_on_exception_is_heard_and_a_second_failure_does_not_hide_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[BaseException] = []

    class Watcher:
        @hookimpl
        def on_exception(self, run: Any, error: BaseException) -> None:
            heard.append(error)
            raise OSError("second")

    with caplog.at_level(logging.WARNING, "drivetrain"), pytest.raises(KeyError) as caught:
        trainer(tmp_path, plugins=[Watcher(), raising("on_step_end")], max_steps=1).train()
    assert heard == [caught.value]
    assert "A listener of on_exception failed as well: OSError('second')" in caplog.text


def test_traced_or_not_a_run_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = trainer(tmp_path / "a", max_steps=3, plugins=[Counter()])
    plain.train()
    capsys.readouterr()
    traced = trainer(tmp_path / "b", max_steps=3, plugins=[Counter()], trace_hooks=True)
    traced.train()
    assert weights_equal(plain.model, traced.model)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[hooks]")]
    assert any("make_strategy" in line and "strategy:single" in line for line in lines)
    assert any("make_strategy gave SingleStrategy" in line for line in lines)
    steps = [line for line in lines if " on_step_end " in line]
    assert len(steps) == 3
    assert steps[1].split() == [
        "[hooks]",
        "step",
        "2",
        "on_step_end",
        "core:callbacks,",
        "callback:Counter,",
        "core:preemption",
    ]
