"""Callbacks: what they are told, in which order, and what they may ask for. Each run is compared event by event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fixtures import Net, accuracy, data
from kit import Kit, case


def asking(
    k: Kit, event: str, flag: str, when: Callable[[Any], bool], value: bool = True, give: bool = True
) -> Any:
    """A callback that sets ``control.flag`` at ``event`` when ``when(state)`` holds."""

    def method(self: Any, args: Any, state: Any, control: Any, **given: Any) -> Any:
        if when(state):
            setattr(control, flag, value)
        return control if give else None

    return type("Asking", (k.hf.TrainerCallback,), {event: method})()


def at(step: int) -> Callable[[Any], bool]:
    return lambda state: bool(state.global_step == step)


_WHERE = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_step_end",
    "on_epoch_end",
    "on_log",
    "on_evaluate",
)

# Every flag asked for at every event, at step 2 of 6 (accumulated, so that there are substeps).
for _event in _WHERE:
    for _flag in (
        "should_log",
        "should_evaluate",
        "should_save",
        "should_training_stop",
        "should_epoch_stop",
    ):

        @case(f"control/{_flag[7:].replace('_', '-')}-at-{_event[3:].replace('_', '-')}")
        def _(k: Kit, event: str = _event, flag: str = _flag) -> None:
            when = at(0) if event == "on_train_begin" else (lambda state: state.global_step >= 2)
            trainer = k.trainer(
                callbacks=[asking(k, event, flag, when)],
                gradient_accumulation_steps=2,
                logging_steps=4,
                evaluation_strategy="steps",
                eval_steps=3,
                num_train_epochs=2,
            )
            k.train(trainer)


@case("control/log-cleared")
def _(k: Kit) -> None:
    k.train(k.trainer(callbacks=[asking(k, "on_step_end", "should_log", at(3), value=False)]))


@case("control/evaluation-cleared")
def _(k: Kit) -> None:
    ask = asking(k, "on_step_end", "should_evaluate", at(4), value=False)
    k.train(k.trainer(callbacks=[ask], evaluation_strategy="steps", eval_steps=2))


@case("control/save-cleared")
def _(k: Kit) -> None:
    k.train(k.trainer(callbacks=[asking(k, "on_step_end", "should_save", at(4), value=False)], save_steps=2))


@case("control/stop-cleared")
def _(k: Kit) -> None:
    ask = asking(k, "on_step_end", "should_training_stop", lambda state: True, value=False)
    k.train(k.trainer(callbacks=[ask], num_train_epochs=1.5))


@case("control/nothing-returned")
def _(k: Kit) -> None:
    k.train(k.trainer(callbacks=[asking(k, "on_step_end", "should_training_stop", at(3), give=False)]))


@case("control/replaced")
def _(k: Kit) -> None:
    """A callback may hand back a control of its own."""

    class Replacing(k.hf.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
            return k.hf.TrainerControl(should_training_stop=state.global_step >= 4, should_log=True)

    k.train(k.trainer(callbacks=[Replacing()], logging_strategy="no"))


@case("control/stop-first-micro-batch")
def _(k: Kit) -> None:
    ask = asking(k, "on_substep_end", "should_training_stop", lambda state: state.global_step >= 1)
    k.train(k.trainer(callbacks=[ask], gradient_accumulation_steps=3))


@case("control/epoch-stop-every-epoch")
def _(k: Kit) -> None:
    ask = asking(k, "on_step_end", "should_epoch_stop", lambda state: state.global_step % 2 == 0)
    k.train(
        k.trainer(callbacks=[ask], num_train_epochs=3, logging_strategy="epoch", evaluation_strategy="epoch")
    )


def early(name: str, patience: int, threshold: float = 0.0, **arguments: Any) -> None:
    def function(k: Kit) -> None:
        trainer = k.trainer(
            train=data(14),
            eval=data(14, seed=9),
            callbacks=[k.hf.EarlyStoppingCallback(patience, threshold)],
            compute_metrics=accuracy,
            **{
                **{
                    "evaluation_strategy": "steps",
                    "eval_steps": 1,
                    "save_steps": 1,
                    "load_best_model_at_end": True,
                    "learning_rate": 0.3,
                    "num_train_epochs": 6,
                },
                **arguments,
            },
        )
        k.train(trainer)

    case(name)(function)


early("early-stopping/patience-one", 1)
early("early-stopping/patience-three", 3)
early("early-stopping/threshold", 2, 0.2)
early("early-stopping/accuracy", 2, metric_for_best_model="accuracy")
early("early-stopping/epochs", 1, evaluation_strategy="epoch", save_strategy="epoch", save_total_limit=1)
early("early-stopping/saved-less-often", 1, eval_steps=1, save_steps=2)
early("early-stopping/without-best", 1, load_best_model_at_end=False)
early(
    "early-stopping/no-evaluation",
    1,
    evaluation_strategy="no",
    save_strategy="no",
    load_best_model_at_end=True,
)


@case("callbacks/order")
def _(k: Kit) -> None:
    class First(k.hf.TrainerCallback):
        pass

    class Second(k.hf.TrainerCallback):
        pass

    class Third(k.hf.TrainerCallback):
        pass

    trainer = k.trainer(callbacks=[First, Second()])

    def names() -> list[str]:
        return [type(callback).__name__ for callback in trainer.callback_handler.callbacks]

    lists = [names()]
    trainer.add_callback(Third)
    trainer.add_callback(Third())
    lists.append(names())
    lists.append([type(trainer.pop_callback(Second)).__name__])
    trainer.remove_callback(First)
    lists.append(names())
    lists.append([str(trainer.pop_callback(First))])
    trainer.remove_callback(k.hf.PrinterCallback)
    lists.append(names())
    k.note("lists", lists)
    k.note("text", trainer.callback_handler.callback_list.split("\n"))
    k.train(trainer, "without-printer")


@case("callbacks/progress-bar-listed")
def _(k: Kit) -> None:
    trainer = k.trainer(disable_tqdm=False)
    trainer.remove_callback(k.hf.ProgressCallback)
    k.train(trainer)


@case("callbacks/without-default-flow")
def _(k: Kit) -> None:
    trainer = k.trainer(evaluation_strategy="steps", eval_steps=2, max_steps=4)
    trainer.remove_callback(k.hf.DefaultFlowCallback)
    k.train(trainer)


@case("callbacks/added-later")
def _(k: Kit) -> None:
    seen: list[Any] = []

    class Watching(k.hf.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            seen.append(sorted(logs.keys() - {"total_flos"}))

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
            seen.append(sorted(metrics))

    trainer = k.trainer(evaluation_strategy="epoch", logging_strategy="epoch")
    trainer.add_callback(Watching())
    k.train(trainer)
    k.note("seen", seen)


@case("callbacks/changes-the-logs")
def _(k: Kit) -> None:
    """The dict that callbacks get is the one that is printed after them, but not the row of the history."""

    class Adding(k.hf.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            logs["extra"] = 1.0

    k.train(k.trainer(callbacks=[Adding()], logging_steps=4))


@case("callbacks/changes-the-metrics")
def _(k: Kit) -> None:
    class Adding(k.hf.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
            metrics["eval_score"] = -state.global_step

    trainer = k.trainer(
        callbacks=[Adding()],
        evaluation_strategy="steps",
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    k.train(trainer)
    k.evaluate(trainer)


@case("callbacks/sees-the-model")
def _(k: Kit) -> None:
    seen: list[Any] = []

    class Watching(k.hf.TrainerCallback):
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **given: Any
        ) -> None:
            seen.append(type(model).__name__)
            seen.append(len(given["train_dataloader"]))
            seen.append(len(given["optimizer"].param_groups))
            seen.append(given["lr_scheduler"].get_last_lr())

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            seen.append([given["lr_scheduler"].get_last_lr()[0], given["model"].training])
            gradients = [p.grad for p in given["model"].parameters()]
            seen.append(all(g is None or not g.any() for g in gradients))

        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            seen.append([len(given["eval_dataloader"]), given["model"].training])

    k.train(k.trainer(callbacks=[Watching()], evaluation_strategy="epoch", warmup_steps=2))
    k.note("seen", seen)


@case("callbacks/freezes-and-changes-the-rate")
def _(k: Kit) -> None:
    """A callback that changes the optimizer's rate and the arguments in mid-run."""

    class Changing(k.hf.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                args.max_grad_norm = 0.01
                args.logging_strategy = type(args.logging_strategy)("epoch")
                given["optimizer"].param_groups[0]["lr"] = 0.5

    k.train(k.trainer(callbacks=[Changing()], lr_scheduler_type="constant"))


@case("callbacks/subclass-of-the-flow")
def _(k: Kit) -> None:
    class Flow(k.hf.DefaultFlowCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
            control.should_evaluate = True
            return control

    trainer = k.trainer(callbacks=[Flow()], logging_strategy="epoch")
    k.train(trainer)


@case("callbacks/evaluate-inside")
def _(k: Kit) -> None:
    """A callback that calls ``trainer.evaluate()`` itself, as many scripts do."""

    class Calling(k.hf.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            trainer.evaluate(eval_dataset=trainer.train_dataset, metric_key_prefix="train")

    trainer = k.trainer(Net(dropout=0.3), callbacks=[Calling()], evaluation_strategy="epoch")
    k.train(trainer)


@case("callbacks/saves-state-files")
def _(k: Kit) -> None:
    import json

    trainer = k.trainer(num_train_epochs=1, save_steps=3)
    output = k.train(trainer)
    trainer.log_metrics("train", output.metrics)
    trainer.save_metrics("train", output.metrics)
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    trainer.save_metrics("other", {"a": 1.0}, combined=False)
    trainer.save_state()
    folder = k.folder / "out"
    k.note("files", sorted(path.name for path in folder.glob("*.json")))
    k.note(
        "all",
        {
            key: type(value).__name__
            for key, value in json.loads((folder / "all_results.json").read_text()).items()
        },
    )
    state = json.loads((folder / "trainer_state.json").read_text())
    k.note("steps", [row["step"] for row in state["log_history"]])
    k.note(
        "saved-step", json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())["global_step"]
    )
    k.note("keys", sorted(state))
    formatted = trainer.metrics_format(
        {"train_loss": 0.123456, "total_flos": 2.0**31, "x_runtime": 61.5, "n": 3}
    )
    k.note("formatted", formatted)
