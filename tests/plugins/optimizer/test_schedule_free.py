"""Optimizers whose weights in an evaluation are others than those that are trained: who has which, and exactly so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.toy import Toy, rows, trainer, weights_equal

from drivetrain import Trainer, TrainerCallback
from drivetrain.resolve import resolve

pytest.importorskip("schedulefree")

OURS: dict[str, Any] = {
    "optim": "schedule_free_adamw",
    "lr_scheduler_type": "constant",
    "learning_rate": 0.05,
    "weight_decay": 0.1,
    "max_steps": 12,
    "data_seed": 1,  # an evaluation draws a random number, as in 4.34.0
    "save_strategy": "no",
}
EVALUATED = {"evaluation_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}


def built(folder: Path, **values: Any) -> Trainer:
    return trainer(folder, **{"data": rows(40), "eval_dataset": rows(20, seed=1), **OURS, **values})


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
def test_evaluations_and_checkpoints_leave_no_trace_in_training(tmp_path, optim):
    plain = built(tmp_path / "plain", optim=optim)
    plain.train()
    seen = built(tmp_path / "seen", optim=optim, **EVALUATED)
    seen.train()
    assert weights_equal(plain.model, seen.model)
    assert same(seen.model, saved(tmp_path / "seen" / "checkpoint-12"))


@pytest.mark.parametrize("save_async", [False, True])
def test_what_is_evaluated_is_what_is_saved(tmp_path, save_async):
    run = built(tmp_path, save_async=save_async, **EVALUATED)
    run.train()
    losses = {row["step"]: row["eval_loss"] for row in run.state.log_history if "eval_loss" in row}
    assert sorted(losses) == [3, 6, 9, 12]
    for step, loss in losses.items():
        model = Toy()
        model.load_state_dict(saved(tmp_path / f"checkpoint-{step}"))
        again = built(tmp_path / "again", model=model, optim="adamw_torch")
        assert again.evaluate()["eval_loss"] == loss
    # What was trained is beside it.
    trained = safetensors.torch.load_file(tmp_path / "checkpoint-6" / "optimizer.safetensors")
    assert not torch.equal(
        trained["first.weight/train_weights"], saved(tmp_path / "checkpoint-6")["first.weight"]
    )


def test_the_best_model_is_loaded_and_training_can_go_on(tmp_path):
    best = built(tmp_path, load_best_model_at_end=True, learning_rate=0.5, **EVALUATED)
    best.train()
    folder = best.state.best_model_checkpoint
    assert same(best.model, saved(Path(folder)))
    losses = [row["eval_loss"] for row in best.state.log_history if "eval_loss" in row]
    assert best.evaluate()["eval_loss"] == min(losses)
    best.train()  # with the same optimizer
    assert best.state.global_step == 12


class Looks(TrainerCallback):
    """Saves and evaluates from within, at the steps that it is told."""

    def __init__(self, *steps: int, fail: int | None = None) -> None:
        self.steps, self.fail = steps, fail
        self.losses: list[float] = []
        self.in_events: dict[str, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.trainer.save_model(f"{args.output_dir}/at-{state.global_step}")
            self.losses.append(self.trainer.evaluate()["eval_loss"])
        if state.global_step == self.fail:
            raise KeyError("on purpose")

    def note(self, event: str, model: Any) -> None:
        self.in_events[event] = {name: value.clone() for name, value in model.state_dict().items()}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.note("evaluate", model)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.note("save", model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.note("train_end", model)


def test_who_saves_or_evaluates_from_within_has_the_weights_for_evaluation(tmp_path):
    plain = built(tmp_path / "plain", save_strategy="steps", save_steps=4)
    plain.train()
    looks = Looks(4, 7)
    run = built(tmp_path / "run", callbacks=[looks], evaluation_strategy="steps", eval_steps=4, save_strategy="steps",
                save_steps=4)  # fmt: skip
    looks.trainer = run
    run.train()
    assert weights_equal(plain.model, run.model)
    assert saved(tmp_path / "run" / "at-4").keys() == run.model.state_dict().keys()
    for name, value in saved(tmp_path / "run" / "at-4").items():
        assert torch.equal(value, saved(tmp_path / "plain" / "checkpoint-4")[name])
    assert looks.losses[0] == next(row["eval_loss"] for row in run.state.log_history if "eval_loss" in row)
    for event in ("evaluate", "save", "train_end"):
        assert same(run.model, looks.in_events[event]), event


def test_a_run_that_fails_leaves_the_weights_for_evaluation(tmp_path):
    whole = built(tmp_path / "whole", max_steps=5)
    whole.train()
    failed = built(tmp_path / "failed", callbacks=[Looks(fail=5)])
    with pytest.raises(KeyError, match="on purpose"):
        failed.train()
    assert weights_equal(whole.model, failed.model)


def test_an_error_leaves_a_checkpoint_to_go_on_from(tmp_path):
    whole = built(tmp_path / "whole")
    whole.train()
    failed = built(tmp_path / "failed", callbacks=[Looks(fail=6)], save_strategy="steps", save_steps=5,
                   save_on_exception=True)  # fmt: skip
    with pytest.raises(KeyError, match="on purpose"):
        failed.train()
    again = built(tmp_path / "failed", save_strategy="steps", save_steps=5)
    again.train(resume_from_checkpoint=True)
    assert weights_equal(whole.model, again.model)


def test_it_is_the_same_from_a_class_or_an_object(tmp_path):
    import schedulefree

    word = built(tmp_path / "word", **EVALUATED)
    word.train()
    by_class = built(tmp_path / "class", **{**EVALUATED, "optim": "schedulefree:AdamWScheduleFree"})
    by_class.train()
    torch.manual_seed(0)
    model = Toy()
    groups = [
        {"params": [p for name, p in model.named_parameters() if ("bias" in name or "norm" in name) is spared],
         "weight_decay": 0.0 if spared else 0.1}
        for spared in (False, True)
    ]  # fmt: skip
    finished = schedulefree.AdamWScheduleFree(groups, lr=0.05)
    by_object = built(tmp_path / "object", model=model, optimizers=(finished, None), **EVALUATED)
    by_object.train()
    assert weights_equal(word.model, by_class.model)
    assert weights_equal(word.model, by_object.model)


def test_who_warms_up(tmp_path, caplog):
    for scheduler, its, message in (
        ("constant", 5, None),
        ("constant_with_warmup", 0, None),
        (None, 0, "needs no schedule, and lr_scheduler_type is 'linear' by default"),
    ):
        chosen = {} if scheduler is None else {"lr_scheduler_type": scheduler}
        values = {key: value for key, value in OURS.items() if key != "lr_scheduler_type"}
        caplog.clear()
        with caplog.at_level(logging.WARNING, "drivetrain"):
            run = trainer(tmp_path, data=rows(40), **{**values, **chosen, "warmup_steps": 5})
            run.train()
        assert run.optimizer.param_groups[0]["warmup_steps"] == its
        said = [record.getMessage() for record in caplog.records]
        assert not any("warmup_steps=5 has no effect" in line for line in said)
        assert (
            any(message in line for line in said) if message else not any("needs no" in line for line in said)
        )
    ratio = trainer(tmp_path, data=rows(40), **{**OURS, "warmup_ratio": 0.25})
    ratio.train()
    assert ratio.optimizer.param_groups[0]["warmup_steps"] == 3


def test_radam_says_that_it_takes_no_warmup(tmp_path):
    args = built(tmp_path, optim="schedule_free_radam", warmup_steps=5).args
    assert any("warmup_steps=5 has no effect" in line for line in resolve(args).inert)
