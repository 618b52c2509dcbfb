"""Hyperparameter search with Optuna itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain import ConfigurationError, Trainer, TrainingArguments
from drivetrain.search import BestRun, HPSearchBackend, default_compute_objective

optuna = pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data(count: int = 32) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x = torch.randn(count, 4)
    return [{"x": row, "labels": int(row.sum() > 0)} for row in x]


def trainer(folder: Path, model_init: Any = Net, eval_dataset: Any = None, **arguments: Any) -> Trainer:
    args = TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        },
    )
    return Trainer(
        model_init=model_init, args=args, train_dataset=data(), eval_dataset=eval_dataset or data()
    )


def space(trial: Any) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_categorical("learning_rate", [1e-5, 1e-1])}


def test_the_better_rate_is_found(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    best = made.hyperparameter_search(
        space,
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e-5, 1e-1]}),
    )
    assert isinstance(best, BestRun)
    assert best.hyperparameters == {"learning_rate": 1e-1}
    # The arguments are as they were, and the best run can be had again from them.
    assert made.args.learning_rate == 1e-3
    made.args.learning_rate = best.hyperparameters["learning_rate"]
    made.train()
    assert made.evaluate()["eval_loss"] == pytest.approx(best.objective)


def test_each_trial_has_its_arguments_in_their_types_its_name_and_folder(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def wide(trial: Any) -> dict[str, Any]:
        return {
            "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 2),
            "per_device_train_batch_size": trial.suggest_float(
                "per_device_train_batch_size", 8.0, 16.0, step=8.0
            ),
            "lr_scheduler_type": trial.suggest_categorical("lr_scheduler_type", ["constant", "cosine"]),
        }

    def objective(metrics: dict[str, float]) -> float:
        args, state = made.args, made.state
        seen.append((args.num_train_epochs, args.per_device_train_batch_size, str(args.lr_scheduler_type)))
        assert type(args.num_train_epochs) is float
        assert type(args.per_device_train_batch_size) is int
        assert state.is_hyper_param_search
        assert state.trial_name == f"try-{len(seen) - 1}"
        assert state.trial_params is not None
        assert state.max_steps == args.num_train_epochs * 32 // args.per_device_train_batch_size
        return metrics["eval_loss"]

    made = trainer(tmp_path, save_strategy="epoch", evaluation_strategy="no")
    best = made.hyperparameter_search(
        wide, objective, n_trials=3, hp_name=lambda trial: f"try-{trial.number}", direction="maximize"
    )
    assert len(seen) == 3
    assert best.run_id in ("0", "1", "2")
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["try-0", "try-1", "try-2"]
    assert all(any((tmp_path / name).glob("checkpoint-*")) for name in folders)


def test_the_model_is_new_in_each_trial_and_may_know_it(tmp_path: Path) -> None:
    widths: list[int] = []

    class Wide(Net):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))

    def init(trial: Any) -> nn.Module:
        width = trial.suggest_int("width", 2, 9) if trial is not None else 3
        widths.append(width)
        return Wide(width)

    made = trainer(tmp_path, init)
    best = made.hyperparameter_search(lambda trial: {}, n_trials=3)
    assert widths[0] == 3
    assert len(widths) == 4
    assert best.hyperparameters["width"] in widths[1:]


def test_a_trial_that_promises_nothing_ends_early(tmp_path: Path) -> None:
    made = trainer(tmp_path, evaluation_strategy="steps", eval_steps=1, num_train_epochs=2)
    ends: list[int] = []
    study: dict[str, Any] = {}

    class Threshold(optuna.pruners.BasePruner):
        """Prunes every trial but the first at its third report."""

        def prune(self, study_: Any, trial: Any) -> bool:
            study["study"] = study_
            return trial.number > 0 and len(trial.intermediate_values) >= 3

    from drivetrain import TrainerCallback

    class Ends(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(state.global_step)

    made.add_callback(Ends)
    before = len(made.callback_handler.callbacks)
    made.hyperparameter_search(space, n_trials=3, pruner=Threshold())
    assert ends == [8, 3, 3]
    states = [trial.state.name for trial in study["study"].trials]
    assert states == ["COMPLETE", "PRUNED", "PRUNED"]
    assert sorted(study["study"].trials[0].intermediate_values) == list(range(1, 9))
    assert len(made.callback_handler.callbacks) == before


def test_several_evaluation_sets_are_one_report(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def objective(metrics: dict[str, float]) -> float:
        seen.append(metrics)
        return metrics["eval_a_loss"] + metrics["eval_b_loss"]

    sets = {"a": data(8), "b": data(16)}
    made = trainer(tmp_path, eval_dataset=sets, evaluation_strategy="epoch", num_train_epochs=2)
    made.hyperparameter_search(space, objective, n_trials=1)
    assert len(seen) == 2
    assert all({"eval_a_loss", "eval_b_loss"} <= set(metrics) for metrics in seen)


def test_several_objectives(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    found = made.hyperparameter_search(
        space,
        lambda metrics: [metrics["eval_loss"], metrics["eval_runtime"]],
        n_trials=2,
        direction=["minimize", "minimize"],
    )
    assert isinstance(found, list)
    assert all(len(best.objective) == 2 for best in found)


def test_the_default_space_is_the_documented_one(tmp_path: Path) -> None:
    best = trainer(tmp_path).hyperparameter_search(n_trials=1, backend=HPSearchBackend.OPTUNA)
    assert set(best.hyperparameters) == {
        "learning_rate",
        "num_train_epochs",
        "seed",
        "per_device_train_batch_size",
    }


def test_the_default_objective() -> None:
    speed = {"eval_runtime": 1.0, "eval_samples_per_second": 2.0, "epoch": 3.0}
    assert default_compute_objective({"eval_loss": 0.5, **speed}) == 0.5
    assert default_compute_objective({"eval_loss": 0.5, "eval_f1": 0.25, "eval_em": 0.5, **speed}) == 0.75


def test_a_failing_trial_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    before = len(made.callback_handler.callbacks)
    with pytest.raises(ConfigurationError, match=r"gradient_accumulation_steps=1.5, which is no int"):
        made.hyperparameter_search(
            lambda trial: {"learning_rate": 1.0, "gradient_accumulation_steps": 1.5}, n_trials=1
        )
    assert made.args.learning_rate == 1e-3
    assert made.hp_search_backend is None
    assert len(made.callback_handler.callbacks) == before


def test_a_parameter_that_is_no_argument_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        trainer(tmp_path).hyperparameter_search(
            lambda trial: {"learning_rat": trial.suggest_float("learning_rat", 0.0, 1.0)}, n_trials=1
        )
    assert "Did you mean 'learning_rate'?" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"backend": "optun"}, "Did you mean 'optuna'?"),
        ({"backend": "ray"}, "ray"),
        ({"n_jobs": 2}, "n_jobs must be 1"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path).hyperparameter_search(space, n_trials=1, **wanted)
    assert said in str(caught.value)


def test_a_model_alone_cannot_be_searched(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigurationError, match="give Trainer a model_init"):
        Trainer(Net(), args, train_dataset=data()).hyperparameter_search(n_trials=1)


def test_a_search_that_was_handed_in(tmp_path: Path) -> None:
    from drivetrain import hookimpl

    class Once:
        default_hp_space = staticmethod(lambda trial: {})

        def run(self, trainer: Any, n_trials: int, direction: Any, **kwargs: Any) -> BestRun:
            return BestRun("0", float(n_trials), kwargs)

    class Own:
        name = "once"

        @hookimpl
        def make_search(self, trainer: Any) -> Once:
            return Once()

    made = trainer(tmp_path)
    made._plugins.append(Own())
    assert made.hyperparameter_search(n_trials=7, extra=1) == BestRun("0", 7.0, {"extra": 1})
