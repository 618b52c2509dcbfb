"""A model that model_init builds is built in the strategy's context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support.toy import Toy, trainer

from drivetrain import WholeParameters, hookimpl


class Watching(WholeParameters):
    inside = False

    @contextmanager
    def model_context(self) -> Iterator[None]:
        Watching.inside = True
        yield
        Watching.inside = False


class Plugin:
    name = "watching"

    @hookimpl
    def make_strategy(self, run: Any) -> Watching:
        return Watching(run)


def test_model_init_runs_in_the_strategys_context(tmp_path: Path) -> None:
    built: list[bool] = []

    def build() -> torch.nn.Module:
        built.append(Watching.inside)
        return Toy()

    made = trainer(tmp_path, model_init=build, plugins=[Plugin()], max_steps=2)
    made.train()
    assert built == [False, True]  # the constructor's own model is built before there is a strategy
    assert isinstance(made.run.strategy, Watching)
