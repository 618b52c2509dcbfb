"""The constructor against the table of what is documented."""

import dataclasses
import enum
import inspect
import pickle
import subprocess
import sys
import tomllib
import types
import typing
from pathlib import Path

import pytest

from drivetrain.arguments import ORDER, TOPICS, TrainingArguments, declared

CONTRACT = tomllib.loads((Path(__file__).parent / "contract.toml").read_text())
DOCUMENTED = CONTRACT["documented"]
NAMED = CONTRACT["named"]


def spelled(hint: object) -> str:
    """An annotation as the table writes it."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = []
    for kind in kinds:
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
        text = ", ".join(member.value for member in inner) if issubclass(inner, enum.Enum) else inner.__name__
        words.append(f"list of {text}" if inner is not kind else text)
    optional = "?" if "NoneType" in words else ""
    return next(word for word in words if word != "NoneType") + optional


@pytest.mark.parametrize(
    ("name", "kind", "default", "owner"), DOCUMENTED + NAMED, ids=lambda value: str(value)
)
def test_type_default_and_owner(name, kind, default, owner):
    hint, field = declared()[name]
    wanted = {"none": None, "required": dataclasses.MISSING}.get(default, default)
    assert field.default == wanted
    assert type(field.default) is type(wanted)
    assert spelled(hint) == kind
    assert field.metadata["owner"] == owner
    assert field.metadata["help"].endswith(".")


def test_documented_arguments_are_positional_in_order():
    parameters = inspect.signature(TrainingArguments).parameters
    positional = [
        name for name, found in parameters.items() if found.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == [row[0] for row in DOCUMENTED] == list(ORDER)
    keywords = [name for name, found in parameters.items() if found.kind is inspect.Parameter.KEYWORD_ONLY]
    assert keywords == [row[0] for row in NAMED]


def test_every_topic_is_put_together_and_no_argument_stands_in_two():
    names = [field.name for topic in TOPICS for field in dataclasses.fields(topic)]
    assert sorted(names) == sorted(declared())
    assert len(set(names)) == len(names)


def test_positions_are_those_of_transformers(reference_signature):
    ours = list(inspect.signature(TrainingArguments).parameters)
    assert ours[: len(reference_signature)] == reference_signature


@pytest.fixture
def reference_signature():
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != "4.34.0":
        pytest.skip(f"needs transformers 4.34.0, here is {transformers.__version__}")
    return list(inspect.signature(transformers.TrainingArguments).parameters)


def test_a_position_reaches_its_argument():
    args = TrainingArguments("out", True, True, False, False, "epoch", True, 4)
    assert args.output_dir == "out"
    assert args.overwrite_output_dir
    assert args.evaluation_strategy == "epoch"
    assert args.prediction_loss_only
    assert args.per_device_train_batch_size == 4


def test_hints_resolve_at_run_time():
    hints = typing.get_type_hints(TrainingArguments)
    assert set(declared()) <= set(hints)


def test_importing_needs_no_torch():
    code = (
        "import sys, drivetrain.arguments as a; a.TrainingArguments('out', fp16=True,"
        " local_rank=0).to_dict();"
        "a.field_table(); print([m for m in ('torch', 'transformers', 'pluggy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclasses.dataclass
class Extended(TrainingArguments):
    learning_rate: float = 1e-3
    extra: int = 0


def test_subclass_keeps_positions_and_adds_its_own():
    args = Extended("out", True, True, extra=3)
    assert (args.output_dir, args.do_train, args.learning_rate, args.extra) == (
        "out",
        True,
        1e-3,
        3,
    )
    positional = [
        name
        for name, found in inspect.signature(Extended).parameters.items()
        if found.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == [*ORDER, "extra"]
    assert args.to_dict()["extra"] == 3
    assert args == Extended(**args.to_dict())


def test_subclass_does_not_print_tokens():
    assert "secret" not in repr(Extended("out", hub_token="secret"))


@pytest.mark.parametrize("cls", [TrainingArguments, Extended])
def test_pickles(cls):
    args = cls("out", evaluation_strategy="steps", fsdp="full_shard", report_to=["wandb"])
    again = pickle.loads(pickle.dumps(args))
    assert again == args
    again.settle()
    assert again == args
