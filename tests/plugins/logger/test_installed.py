"""Which loggers there are, what `report_to` makes of their words, and what is said where one is not installed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.logged import trainer

import drivetrain.resolve
from drivetrain import discover
from drivetrain.arguments import TrainingArguments
from drivetrain.arguments.enums import DOCUMENTED
from drivetrain.errors import ConfigurationError
from drivetrain.plugin import import_string
from drivetrain.reporting import all_loggers
from drivetrain.requirements import missing
from drivetrain.resolve import resolve
from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.options import FlyteOptions, LoggerOptions

OURS = (*DOCUMENTED["logger"], "csv", "jsonl", "swanlab", "trackio")
ABSENT = [name for name in OURS if missing(discover.load_info("logger", name))]


def test_every_word_has_a_plugin_which_can_be_made_without_its_library() -> None:
    assert set(OURS) <= set(discover.names("logger"))
    for name in OURS:
        info = discover.load_info("logger", name)
        kind = info.options_class()
        assert kind is not None
        assert issubclass(kind, LoggerOptions)
        made = import_string(info.implementation)(kind())
        assert isinstance(made, Logger)
        assert made.name == name


@pytest.mark.parametrize("name", ABSENT)
def test_one_that_is_not_installed_is_an_error_with_the_line_that_installs_it(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(TrainingArguments("out", report_to=name))
    said = str(caught.value)
    assert f"Logger '{name}' needs " in said
    assert f"Run: pip install 'drivetrain[{name}]'" in said


def test_all_means_those_that_are_installed_and_the_run_says_which(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = resolve(TrainingArguments("out", report_to=None))
    names = [active.name for active in plan.of_kind("logger")]
    assert set(names) & set(OURS) <= set(OURS) - set(ABSENT) - {"csv", "jsonl", "flyte"}
    assert plan.reporting.startswith(
        f"report_to='all': the loggers that are installed are active, which are {', '.join(names) or 'none'}."
    )
    # The libraries that are here would write elsewhere: they are hidden, but for TensorBoard.
    found = [info for info in all_loggers(TrainingArguments("out"))[0] if info.name == "tensorboard"]
    line = "report_to='all': the loggers that are installed are active, which are tensorboard."
    monkeypatch.setattr(drivetrain.resolve, "all_loggers", lambda args: (found, line))
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        for _ in range(2):
            trainer(tmp_path, None, max_steps=1, evaluation_strategy="no").train()
    assert [record.getMessage() for record in caplog.records].count(line) == 1


def test_dagshub_that_has_no_address_is_refused_and_left_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    probe = discover.load_info("logger", "dagshub").probe
    assert probe is not None
    told = probe(TrainingArguments("out", report_to="none"))
    assert told == "The logger 'dagshub' needs MLFLOW_TRACKING_URI, which dagshub.init() sets: call it first."


@pytest.mark.parametrize("option", ["queue_size", "open_timeout", "close_timeout"])
def test_flyte_has_no_queue_and_says_so(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} has no effect here, since it works in the main thread"):
        FlyteOptions(**{option: 5})
