"""Arguments from TOML, JSON and the words of a command line."""

import dataclasses

import pytest

from drivetrain.arguments import (
    TrainingArguments,
    convert,
    declared,
    field_table,
    from_file,
    from_mapping,
    from_words,
    read_file,
)
from drivetrain.errors import ConfigurationError


def problems(function, *arguments, **keywords):
    with pytest.raises(ConfigurationError) as caught:
        function(*arguments, **keywords)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("max_steps", "1_000", 1000),
        ("max_steps", "1e3", 1e3),
        ("bf16", "true", True),
        ("bf16", "Off", False),
        ("tf32", "none", None),
        ("data_seed", "None", None),
        ("report_to", "tensorboard,wandb", ["tensorboard", "wandb"]),
        ("report_to", "none", ["none"]),
        ("label_names", "start, end", ["start", "end"]),
        ("run_name", "12", "12"),
        ("plugins", '{"a": {}}', '{"a": {}}'),
        ("learning_rate", 0.5, 0.5),
    ],
)
def test_convert(name, word, value):
    found = convert(name, word)
    assert found == value
    assert type(found) is type(value)


def test_a_table_with_numbers_as_strings():
    args = from_mapping(
        {"output-dir": "out", "learning-rate": "1e-4", "bf16": "yes", "fsdp_config": {"xla": False}}
    )
    assert (args.learning_rate, args.bf16) == (1e-4, True)


def test_problems_name_file_key_and_nearest_match():
    found = problems(
        from_mapping,
        {"output_dir": "out", "lerning_rate": 1, "bf16": "maybe", "save_strategy": "stepz"},
        "run.toml",
    )
    assert found == [
        "run.toml: Unknown argument 'lerning_rate'. Did you mean 'learning_rate'?",
        "run.toml: bf16='maybe' must be true or false.",
        "run.toml: Unknown save_strategy 'stepz'. Did you mean 'steps'? Choices: no, steps, epoch.",
    ]


def test_problems_between_arguments_are_placed_at_the_first_that_the_table_has():
    lines = {"bf16": 3, "fp16": 4, "output_dir": 1}
    found = problems(
        from_mapping,
        {"output_dir": "out", "bf16": True, "fp16": True},
        lambda name: f"run.toml, line {lines[name]}",
    )
    assert found == ["run.toml, line 3: bf16=True and fp16=True contradict each other: keep one of them."]


def test_the_folder_must_be_given():
    assert problems(from_mapping, {"bf16": True}, "run.toml") == ["run.toml: output_dir must be given."]


def test_files(tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text(
        'output_dir = "out"\nlearning_rate = 1e-3\nreport_to = ["wandb"]\n[plugins.localsgd]\nevery = 8\n'
    )
    args = from_file(toml, {"learning_rate": "2e-3"})
    assert (args.learning_rate, args.report_to, args.plugins) == (2e-3, ["wandb"], {"localsgd": {"every": 8}})
    (tmp_path / "run.json").write_text(args.to_json_string())
    assert from_file(tmp_path / "run.json") == args
    assert problems(from_file, toml, {"learning_rate": "fast"}) == ["learning_rate='fast' must be a number."]
    toml.write_text('output_dir = "out"\nlearning_rate = "fast"\n')
    assert problems(from_file, toml) == [f"{toml}: learning_rate='fast' must be a number."]


def test_files_that_cannot_be_read(tmp_path):
    assert problems(read_file, tmp_path / "no.toml") == [f"There is no file {tmp_path / 'no.toml'}."]
    assert "must be a .toml or a .json file" in problems(read_file, tmp_path / "run.yaml")[0]
    (tmp_path / "bad.toml").write_text("a = ")
    assert "is not valid TOML" in problems(read_file, tmp_path / "bad.toml")[0]
    (tmp_path / "list.json").write_text("[]")
    assert "must hold a table of arguments" in problems(read_file, tmp_path / "list.json")[0]


def test_words():
    words = "output_dir=out --bf16 --no_dataloader_pin_memory --report_to a b"
    more = "--learning-rate 1e-3 --do_eval no --fsdp=full_shard"
    args = from_mapping(from_words([*words.split(), *more.split()]))
    assert args.given() == {
        "output_dir": "out",
        "bf16": True,
        "dataloader_pin_memory": False,
        "report_to": ["a", "b"],
        "learning_rate": 1e-3,
        "fsdp": ["full_shard"],
    }


def test_wrong_words():
    assert problems(from_words, ["--bf17", "x", "lerning_rate=3", "--max_steps"]) == [
        "Unknown argument '--bf17'. Did you mean 'bf16'?",
        "Unknown argument 'lerning_rate=3'. Did you mean 'learning_rate'?",
        "max_steps needs a value.",
    ]


@dataclasses.dataclass
class WithExtra(TrainingArguments):
    extra: int = 0


def test_a_subclass():
    args = from_mapping({"output_dir": "out", "extra": 3}, cls=WithExtra)
    assert isinstance(args, WithExtra)
    assert args.extra == 3


def test_the_table_has_every_argument():
    rows = {row.name: row for row in field_table()}
    assert list(rows) == list(declared())
    assert rows["learning_rate"].default == "5e-05"
    assert rows["learning_rate"].topic == "optimization"
    assert rows["save_strategy"].type == "no, steps, epoch"
    assert rows["deepspeed"].type == "a file's name, or a dict"
    assert rows["data_seed"].type == "int, or None"
    assert (rows["bf16"].shape, rows["report_to"].shape, rows["seed"].shape) == ("flag", "list", "value")
    assert rows["seed"].positional
    assert not rows["strategy"].positional


@pytest.mark.parametrize("row", field_table(), ids=lambda row: row.name)
def test_every_default_can_be_written_in_a_file(row):
    default = declared()[row.name][1].default
    if default is dataclasses.MISSING or default is None:
        return
    assert from_mapping({"output_dir": "out", row.name: default}).given() == {"output_dir": "out"}
