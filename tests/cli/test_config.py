"""Mistakes in a config are answered with the file, the line, the key and the nearest match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cli.config import line_of, read
from drivetrain.errors import ConfigurationError

Edit = Callable[[str, str], None]
Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[training]", "[trainin]", "run.toml, line 10, trainin: unknown section. Did you mean 'training'?"),
        ("learning_rate", "lerning_rate", "run.toml, line 14, training.lerning_rate: Unknown argument"),
        ("learning_rate", "lerning_rate", "Did you mean 'learning_rate'?"),
        (
            "0.1",
            '"fast"',
            "run.toml, line 14, training.learning_rate: learning_rate='fast' must be a number.",
        ),
        ('"epoch"', '"epochs"', "run.toml, line 15, training.evaluation_strategy: "),
        ('factory = "line_project:model"', 'factry = "line_project:model"', "[model] needs 'factory'"),
        ('factory = "line_project:model"', 'factry = "line_project:model"', "You wrote 'factry'."),
        ("line_project:model", "line_projct:model", "Did you mean 'line_project'?"),
        (
            "line_project:model",
            "line_project:modl",
            "run.toml, line 3, model.factory: 'line_project' has no 'modl'",
        ),
        ("line_project:model", "line_project:modl", "Did you mean 'model'?"),
        (
            "line_project:model",
            "line_project:number",
            "'line_project:number' is a int, which cannot be called.",
        ),
        (
            "line_project:model",
            "line_project",
            "'line_project' is no import string; write \"module:callable\".",
        ),
        (
            "width = 2",
            "widht = 2",
            "run.toml, line 4, model.widht: 'line_project:model' takes no argument 'widht'.",
        ),
        ("width = 2", "widht = 2", "Did you mean 'width'?"),
        ("line_project:data", "line_project:wrong_data", "takes no argument 'count'"),
        ("width = 2", "width = ", "run.toml, line 4: this is not valid TOML"),
        ('factory = "line_project:data"\ncount = 64', 'train = "rows.jsonl"', "there is no file rows.jsonl"),
        (
            'factory = "line_project:data"\ncount = 64',
            "",
            "[data] needs 'factory', or files under train, eval, test.",
        ),
        ('factory = "line_project:data"\ncount = 64', 'trian = "rows.jsonl"', "You wrote 'trian'."),
        (
            'factory = "line_project:model"\nwidth = 2',
            'transformers = "nowhere"',
            "there is no folder nowhere",
        ),
        ("[training]", '[after]\ncal = "line_project:after"\n[training]', "You wrote 'cal'."),
        ("[training]", "[plugins.gradient_norm]\nevery = 2\n[training]", "Did you mean 'gradient_norms'?"),
        (
            "[training]",
            "[plugins.gradient_norm]\nevery = 2\n[training]",
            "run.toml, line 10, plugins.gradient_norm: ",
        ),
        (
            "[training]",
            "[plugins.gradient_norms]\nevry = 2\n[training]",
            "run.toml, line 11, plugins.gradient_norms.evry",
        ),
        (
            "[training]",
            "[plugins.gradient_norms]\nevry = 2\n[training]",
            "has no option 'evry'. Did you mean 'every'?",
        ),
        ("[training]", '[plugins]\nenable = ["ddp"]\n[training]', 'strategy = "ddp" chooses it.'),
        ("[training]", '[plugins]\nenable = "ddp"\n[training]', 'write enable = ["NAME"].'),
    ],
)
def test_mistakes_are_told_with_their_place(
    edit: Edit, drivetrain: Command, old: str, new: str, expected: str
) -> None:
    edit(old, new)
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_every_mistake_is_told_at_once(edit: Edit, drivetrain: Command) -> None:
    edit("learning_rate", "lerning_rate")
    edit("num_train_epochs = 2", 'num_train_epochs = "some"')
    edit("use_cpu = true", "use_cpu = 7")
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 2
    for line in (14, 12, 19):
        assert f"run.toml, line {line}, " in result.stderr


def test_what_a_data_factory_returns_is_checked(edit: Edit, drivetrain: Command) -> None:
    edit('factory = "line_project:data"\ncount = 64', 'factory = "line_project:wrong_data"')
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 2
    assert "returned the unknown key 'evall'. Did you mean 'eval'?" in result.stderr


def test_missing_data_for_an_evaluation_is_told(edit: Edit, project: Path, drivetrain: Command) -> None:
    (project / "train_only.py").write_text(
        "import line_project\ndef data(): return {'train': line_project.rows(8, 0)}\n"
    )
    edit('factory = "line_project:data"\ncount = 64', 'factory = "train_only:data"')
    result = drivetrain("train", "run.toml")
    assert result.exit_code == 2
    assert "evaluation needs 'eval' data" in result.stderr


def test_a_missing_config_names_the_nearest(project: Path, drivetrain: Command) -> None:
    result = drivetrain("train", "rum.toml")
    assert result.exit_code == 2
    assert "There is no config file rum.toml. Did you mean 'run.toml'?" in result.stderr


def test_line_of_sees_headers_keys_and_dotted_keys() -> None:
    text = (
        '# a\n[model]\nfactory = "a:b"\n\n[plugins.x]\nevery = 1\n[training]\nplugins.y = 2\n"quoted" = 3\n'
    )
    assert line_of(text, ("model",)) == 2
    assert line_of(text, ("model", "factory")) == 3
    assert line_of(text, ("plugins", "x")) == 5
    assert line_of(text, ("plugins", "x", "every")) == 6
    assert line_of(text, ("training", "plugins", "y")) == 8
    assert line_of(text, ("training", "quoted")) == 9
    assert line_of(text, ("training", "absent")) is None


def test_the_command_line_stands_over_the_file(project: Path) -> None:
    config = read(Path("run.toml"), {"model.width": 3, "plugins.progress.x": 1})
    assert config.model["width"] == 3
    assert config.plugins == {"progress": {"x": 1}}
    assert config.where("model", "width") == "--model.width"
    assert config.where("model", "factory") == "run.toml, line 3, model.factory"


def test_a_config_that_cannot_be_read_is_no_traceback(project: Path) -> None:
    (project / "broken.toml").write_text("[a]\nx = 1\nx = 2\n")
    with pytest.raises(ConfigurationError, match=r"broken\.toml is not valid TOML: .*x"):
        read(Path("broken.toml"))
