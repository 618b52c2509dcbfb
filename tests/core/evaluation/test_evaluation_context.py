"""A strategy that has other weights evaluated than it trains: `Prepared.evaluation`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer, weights_equal

from drivetrain import Prepared, Run, Trainer, TrainerCallback, WholeParameters, hookimpl


class Zeros(WholeParameters):
    """Zeros are evaluated."""

    entered = 0

    def prepare(self, model: Any, optimizer: Any, scheduler: Any) -> Prepared:
        return replace(super().prepare(model, optimizer, scheduler), evaluation=self.zeros)

    @contextmanager
    def zeros(self) -> Iterator[None]:
        Zeros.entered += 1
        kept = [parameter.detach().clone() for parameter in self.model.parameters()]
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.model.parameters(), kept, strict=True):
                    parameter.copy_(value)


class ZerosPlugin:
    name = "zeros"

    @hookimpl
    def make_strategy(self, run: Run) -> Zeros:
        return Zeros(run)


SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
}
CHANCE = torch.tensor(3.0).log().item()  # three classes, and nothing known


def trained(folder: Path, **more: Any) -> Trainer:
    made = trainer(folder, **{**SETTINGS, **more})
    made.train()
    return made


def losses(of: Trainer) -> list[float]:
    return [row["eval_loss"] for row in of.state.log_history if "eval_loss" in row]


def test_evaluations_of_a_training_are_within_it_and_change_nothing_of_it(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    Zeros.entered = 0
    zeros = trained(tmp_path / "zeros", plugins=[ZerosPlugin()])
    assert losses(zeros) == pytest.approx([CHANCE] * 3)
    assert Zeros.entered == 3
    assert weights_equal(plain.model, zeros.model)


def test_an_evaluation_that_a_callback_asks_for_is_within_it_too(tmp_path: Path) -> None:
    """By `evaluate`, and by `predict` within the evaluation of it, which enters it no second time."""
    seen = []

    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(made.predict(rows(9)).metrics["test_loss"])

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            before = Zeros.entered
            seen.append(made.predict(rows(9)).metrics["test_loss"])
            assert Zeros.entered == before

    made = trainer(tmp_path, plugins=[ZerosPlugin()], callbacks=[Asks()], **SETTINGS)
    made.train()
    assert len(seen) == 9
    assert seen == pytest.approx([CHANCE] * 9)


def test_after_training_and_in_a_training_that_fails_the_weights_are_the_trained_ones(tmp_path: Path) -> None:
    made = trained(tmp_path / "one", plugins=[ZerosPlugin()])
    assert made.evaluate()["eval_loss"] == pytest.approx(trained(tmp_path / "two").evaluate()["eval_loss"])

    def fails(prediction: Any) -> dict[str, float]:
        raise RuntimeError("no metrics")

    broken = trainer(tmp_path / "three", plugins=[ZerosPlugin()], compute_metrics=fails, **SETTINGS)
    with pytest.raises(RuntimeError, match="no metrics"):
        broken.train()
    assert all(
        bool(parameter.abs().sum() > 0) for parameter in broken.model.parameters() if parameter.dim() > 1
    )
