"""`drivetrain args`, and the words behind a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drivetrain.arguments.parsing import field_table
from drivetrain.cli.overrides import split_words, typed
from drivetrain.errors import ConfigurationError

Command = Callable[..., Any]
KINDS = {"learning_rate": "value", "bf16": "flag", "report_to": "list", "resume_from_checkpoint": "optional"}


def test_all_arguments_are_listed(drivetrain: Command) -> None:
    lines = drivetrain("args").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row.name for row in field_table()]


def test_a_search_finds_names_first_and_what_they_do(drivetrain: Command) -> None:
    assert drivetrain("args", "all ranks and shards").stdout.startswith("max_grad_norm\n")
    lines = drivetrain("args", "warmup").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines[:2]] == ["warmup_ratio", "warmup_steps"]


@pytest.mark.parametrize("word", ["learning_rate", "learning-rate", "--learning-rate", "Learning_Rate"])
def test_one_argument_in_full(drivetrain: Command, word: str) -> None:
    text = drivetrain("args", word).stdout
    row = next(row for row in field_table() if row.name == "learning_rate")
    assert row.help in text
    assert "5e-05" in text
    assert "optimizer" in text
    assert "--learning-rate VALUE" in text


def test_nothing_found(drivetrain: Command) -> None:
    result = drivetrain("args", "lerning_rate")
    assert result.exit_code == 2
    assert "Did you mean 'learning_rate'?" in result.stderr


@pytest.mark.parametrize(
    ("words", "positional", "values"),
    [
        (["a.toml", "--learning-rate", "1e-3"], ["a.toml"], {"training.learning_rate": "1e-3"}),
        (["--learning_rate=1e-3", "a.toml"], ["a.toml"], {"training.learning_rate": "1e-3"}),
        (["--learning-rate", "-1", "a.toml"], ["a.toml"], {"training.learning_rate": "-1"}),
        (["--bf16", "a.toml"], ["a.toml"], {"training.bf16": True}),
        (["--bf16", "false", "a.toml"], ["a.toml"], {"training.bf16": False}),
        (["--bf16=no", "a.toml"], ["a.toml"], {"training.bf16": False}),
        (["--no-bf16", "a.toml"], ["a.toml"], {"training.bf16": False}),
        (
            ["a.toml", "--report-to", "a", "b", "--bf16"],
            ["a.toml"],
            {"training.report_to": ["a", "b"], "training.bf16": True},
        ),
        (["a.toml", "--resume-from-checkpoint"], ["a.toml"], {"training.resume_from_checkpoint": True}),
        (["a.toml", "--resume-from-checkpoint", "c"], ["a.toml"], {"training.resume_from_checkpoint": "c"}),
        (["a.toml", "--model.hidden", "3"], ["a.toml"], {"model.hidden": "3"}),
        (["a.toml", "--plugins.localsgd.every=8"], ["a.toml"], {"plugins.localsgd.every": "8"}),
    ],
)
def test_words(words: list[str], positional: list[str], values: dict[str, Any]) -> None:
    assert split_words(words, KINDS) == (positional, values)


def test_unknown_options_get_the_nearest_match() -> None:
    with pytest.raises(ConfigurationError) as caught:
        split_words(["a.toml", "--lerning-rate", "1", "--no-such-thing-at-all"], KINDS)
    assert caught.value.problems[0] == (
        "Unknown option '--lerning-rate'. Did you mean '--learning-rate'? `drivetrain args` lists them all."
    )
    assert "Unknown option '--no-such-thing-at-all'." in caught.value.problems[1]


def test_an_option_without_its_value() -> None:
    with pytest.raises(ConfigurationError, match="Option '--learning-rate' needs a value"):
        split_words(["a.toml", "--learning-rate"], KINDS)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("256", 256),
        ("0.1", 0.1),
        ("true", True),
        ('["a"]', ["a"]),
        ("name", "name"),
        ("a b", "a b"),
        (True, True),
    ],
)
def test_values_of_other_sections_are_read_as_toml(word: Any, value: Any) -> None:
    assert typed(word) == value
