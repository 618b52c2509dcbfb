"""Hyperparameter search with Optuna."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import optuna

from drivetrain.callbacks import TrainerCallback
from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.search import BestRun, trial_arguments

logger = logging.getLogger("drivetrain")


class OptunaPlugin:
    """Answers `make_search`."""

    @hookimpl
    def make_search(self, trainer: Any) -> OptunaSearch:
        """The search. It keeps nothing of the trainer."""
        return OptunaSearch()


class OptunaSearch:
    """One study for each search."""

    def default_hp_space(self, trial: optuna.Trial) -> dict[str, Any]:
        """Where nobody says what to search: 4.34.0's four arguments, in its ranges."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
            "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
            "seed": trial.suggest_int("seed", 1, 40),
            "per_device_train_batch_size": trial.suggest_categorical(
                "per_device_train_batch_size", [4, 8, 16, 32, 64]
            ),
        }

    def run(self, trainer: Any, n_trials: int, direction: str | Sequence[str], **kwargs: Any) -> Any:
        """Runs the trials one after another.

        Args:
            trainer: has `hp_space` and `compute_objective`, set by `hyperparameter_search`.
            n_trials: how many.
            direction: "minimize" or "maximize"; several for several objectives, which are never pruned.
            kwargs: `timeout` (seconds) goes to `Study.optimize`; the rest to `optuna.create_study`.

        Raises:
            ConfigurationError: several processes, or `n_jobs`.
        """
        if trainer.args.world_size > 1:
            raise ConfigurationError(
                "hyperparameter_search over several processes is not there yet: start it with one process."
            )
        if kwargs.pop("n_jobs", 1) != 1:
            raise ConfigurationError(
                "n_jobs must be 1, since trials take turns with one trainer: to run several at once, start "
                "several processes that share storage and study_name."
            )
        timeout = kwargs.pop("timeout", None)
        directions: list[Any] = [direction] if isinstance(direction, str) else list(direction)
        study = optuna.create_study(directions=directions, **kwargs)
        several = len(study.directions) > 1
        study.optimize(
            lambda trial: self._objective(trainer, trial, prunable=not several),
            n_trials=n_trials,
            timeout=timeout,
        )
        if several:
            return [BestRun(str(best.number), list(best.values), best.params) for best in study.best_trials]
        best = study.best_trial
        return BestRun(str(best.number), best.values[0], best.params)

    def _objective(self, trainer: Any, trial: optuna.Trial, prunable: bool) -> Any:
        reporter = Reporter(trainer, trial, prunable)
        trainer.objective = None
        with trial_arguments(trainer.args, trainer.hp_space(trial)):
            logger.info("Trial %d: %s", trial.number, trial.params)
            trainer.add_callback(reporter)
            try:
                trainer.train(trial=trial)
            finally:
                trainer.remove_callback(reporter)
            if reporter.pruned:
                raise optuna.TrialPruned(f"at step {trainer.state.global_step}")
            if trainer.objective is None:  # no evaluation took place in training
                trainer.objective = trainer.compute_objective(dict(trainer.evaluate()))
        return trainer.objective


class Reporter(TrainerCallback):
    """Tells the study of each evaluation, and ends a trial that it would prune."""

    def __init__(self, trainer: Any, trial: optuna.Trial, prunable: bool) -> None:
        self.trainer = trainer
        self.trial = trial
        self.prunable = prunable
        self.pruned = False
        sets = trainer.eval_dataset
        self.sets = len(sets) if isinstance(sets, dict) else 1
        self.metrics: list[dict[str, float]] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Reports once all evaluation sets are through."""
        self.metrics.append(dict(metrics or {}))
        if len(self.metrics) < self.sets:
            return
        merged = {name: value for part in self.metrics for name, value in part.items()}
        self.metrics.clear()
        self.trainer.objective = self.trainer.compute_objective(merged)
        if self.prunable:
            self.trial.report(self.trainer.objective, state.global_step)
            if self.trial.should_prune():
                self.pruned = True
                control.should_training_stop = True
