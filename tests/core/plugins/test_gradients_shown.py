"""A listener that reads gradients, under a strategy that has none to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.toy import trainer

from drivetrain import ConfigurationError, WholeParameters, hookimpl


class Hidden(WholeParameters):
    shows_gradients = False


class HiddenPlugin:
    name = "hidden"

    @hookimpl
    def make_strategy(self, run: Any) -> Hidden:
        return Hidden(run)


class Reader:
    name = "reader"

    @hookimpl
    def on_gradients_ready(self, run: Any) -> None:
        pass


def test_both_are_named(tmp_path: Path) -> None:
    made = trainer(tmp_path, plugins=[HiddenPlugin(), Reader()], max_steps=1)
    with pytest.raises(
        ConfigurationError, match=r"Strategy 'hidden' cannot show gradients, which callback:reader reads"
    ):
        made.train()


def test_each_of_them_runs_alone(tmp_path: Path) -> None:
    assert trainer(tmp_path, plugins=[HiddenPlugin()], max_steps=1).train().global_step == 1
    assert trainer(tmp_path, plugins=[Reader()], max_steps=1).train().global_step == 1


def test_a_listener_that_is_content_with_what_there_is(tmp_path: Path) -> None:
    class Content(Reader):
        reads_all_gradients = False

    assert trainer(tmp_path, plugins=[HiddenPlugin(), Content()], max_steps=1).train().global_step == 1


def test_an_update_that_cannot_be_skipped(tmp_path: Path) -> None:
    class Stuck(WholeParameters):
        discard = property()  # type: ignore[assignment]  # as if it had none

    class StuckPlugin:
        name = "stuck"

        @hookimpl
        def make_strategy(self, run: Any) -> Stuck:
            return Stuck(run)

    made = trainer(tmp_path, plugins=[StuckPlugin()], max_steps=1, on_nan_loss="skip")
    with pytest.raises(
        ConfigurationError,
        match=r"Strategy 'stuck' cannot skip an update, which was asked for: on_nan_loss='skip'",
    ):
        made.train()
