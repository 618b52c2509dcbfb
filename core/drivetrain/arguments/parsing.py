"""Arguments from what is not Python: a table of TOML or JSON, or the words of a command line."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from drivetrain.arguments import checks
from drivetrain.arguments.field import Wrong
from drivetrain.arguments.training_arguments import TOPICS, TrainingArguments, declared
from drivetrain.errors import ConfigurationError, did_you_mean

Made = TypeVar("Made", bound=TrainingArguments)
Shape = Literal["flag", "list", "value"]

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True)
class Row:
    """One argument, as a table shows it.

    Args:
        type: what it may be, in words.
        default: as it stands in Python; empty where the argument must be given.
        owner: who reads it: `core`, a kind of plugin, or `kind:plugin`.
        topic: the file of `drivetrain.arguments` that declares it.
        shape: how a command line writes it: `flag` may stand alone, `list` takes several words.
        positional: whether Python code may pass it by position.
    """

    name: str
    type: str
    default: str
    owner: str
    help: str
    topic: str
    shape: Shape
    positional: bool


def field_table() -> list[Row]:
    """Every argument in the order of positions, ours after the documented."""
    topics = {field.name: topic.__module__.rpartition(".")[2] for topic in TOPICS for field in fields(topic)}
    return [
        Row(
            name=name,
            type=_type(hint, field.metadata),
            default="" if field.default is MISSING else repr(field.default),
            owner=field.metadata["owner"],
            help=field.metadata["help"],
            topic=topics[name],
            shape=_shape(hint),
            positional=not field.kw_only,
        )
        for name, (hint, field) in declared().items()
    ]


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _shape(hint: Any) -> Shape:
    kinds = [kind for kind in _kinds(hint) if kind is not NoneType]
    if kinds == [bool]:
        return "flag"
    return "list" if any(get_origin(kind) is list for kind in kinds) else "value"


def _type(hint: Any, metadata: Mapping[str, Any]) -> str:
    kinds = _kinds(hint)
    if metadata.get("accepts") is not None:
        return str(metadata["accepts"])
    if (choices := metadata.get("choices")) is not None:
        text = ", ".join(str(choice) for choice in choices)
    elif enums := [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]:
        text = ", ".join(str(member.value) for member in enums[0])
    else:
        text = next(kind for kind in kinds if kind is not NoneType).__name__
    return f"{text}, or None" if NoneType in kinds else text


def convert(name: str, value: Any) -> Any:
    """A word of a command line as argument `name` takes it: `"1e-4"` is a number, `"true"` is True.

    `none` is None where the argument may be None; names are separated by commas; a dict or list is JSON, or
    as its argument allows a file's name. What is no string is returned as it is.

    Raises:
        Wrong: the word spells no value of the argument's type.
    """
    if not isinstance(value, str):
        return value
    hint, field = declared()[name]
    kinds = _kinds(hint)
    word = value.strip()
    if NoneType in kinds and name != "report_to" and word.lower() in ("none", "null"):
        return None
    if _shape(hint) == "list":
        return [part.strip() for part in re.split(r"[,\s]+", word) if part.strip()]
    if field.metadata.get("check") is not None:
        return value
    kind = next(kind for kind in kinds if kind is not NoneType)
    if kind is bool:
        if word.lower() in (*TRUE, *FALSE):
            return word.lower() in TRUE
        raise Wrong(f"{name}={value!r} must be true or false.")
    if kind in (int, float):
        return _number(name, word, kind)
    return value


def _number(name: str, word: str, kind: type) -> float:
    try:
        return int(word.replace("_", ""))
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise Wrong(f"{name}={word!r} must be {wanted}.") from None


def from_mapping(
    mapping: Mapping[str, Any],
    source: str | Callable[[str], str] = "",
    cls: type[Made] = TrainingArguments,  # type: ignore[assignment]
) -> Made:
    """Arguments from a table. Strings are converted as `convert` says, wherever the type is not a string.

    Args:
        mapping: values by argument.
        source: where the table stands, for messages: a file's name, or what gives it for an argument's name.
        cls: `TrainingArguments` or a subclass.

    Raises:
        ConfigurationError: with every problem, each with its source.
    """
    where = source if callable(source) else lambda name: source
    known = {name for name, field in cls.__dataclass_fields__.items() if field.init}
    problems: list[str] = []
    values: dict[str, Any] = {}
    spelled = {given.replace("-", "_"): given for given in mapping}
    for name, given in spelled.items():
        value = mapping[given]
        if name not in known:
            near = did_you_mean(name, known)
            problems.append(_at(where(given), f"Unknown argument {given!r}.{near}"))
        elif name not in declared():
            values[name] = value
        else:
            hint, field = declared()[name]
            try:
                values[name] = convert(name, value)
                checks.settle(name, values[name], hint, field.metadata)
            except Wrong as wrong:
                problems.append(_at(where(given), str(wrong)))
    missing = [
        name
        for name, field in cls.__dataclass_fields__.items()
        if field.init
        and field.default is MISSING
        and field.default_factory is MISSING
        and name not in spelled
    ]
    problems += [_at("" if callable(source) else source, f"{name} must be given.") for name in missing]
    if problems:
        raise ConfigurationError(problems)
    try:
        return cls(**values)
    except ConfigurationError as error:
        raise ConfigurationError(
            [_at(_place(text, values, where), text) for text in error.problems]
        ) from None


def _place(sentence: str, given: Mapping[str, Any], where: Callable[[str], str]) -> str:
    """Where the first argument stands that a sentence names and the table has."""
    named = [word for word in re.findall(r"\w+", sentence) if word in given]
    return where(named[0]) if named else ""


def _at(place: str, sentence: str) -> str:
    return f"{place}: {sentence}" if place else sentence


def read_file(path: str | Path) -> dict[str, Any]:
    """The table that a TOML or JSON file holds.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read as what its name says.
    """
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ConfigurationError(f"{path} must be a .toml or a .json file.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise ConfigurationError(f"There is no file {path}.") from None
    try:
        table: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        kind = path.suffix[1:].upper()
        raise ConfigurationError(f"{path} is not valid {kind}: {str(error).rstrip('.')}.") from None
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path} must hold a table of arguments.")
    return table


def from_file(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    cls: type[Made] = TrainingArguments,  # type: ignore[assignment]
) -> Made:
    """Arguments from a TOML or JSON file whose keys are arguments, with `overrides` on top.

    Raises:
        ConfigurationError: with every problem, each with the file where the file has it.
    """
    table = read_file(path)
    over = dict(overrides or {})
    return from_mapping({**table, **over}, lambda name: "" if name in over else str(path), cls)


def from_words(words: Sequence[str]) -> dict[str, Any]:
    """The table that a command line spells.

    `--name value`, `--name=value` and `name=value` are values, dashes are underscores, a flag may stand
    alone, and `--no_name` is its opposite; a list takes words up to the next option.

    Raises:
        ConfigurationError: for each word that names no argument, or that lacks its value.
    """
    shapes = {row.name: row.shape for row in field_table()}
    problems: list[str] = []
    table: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        written, equals, value = word.removeprefix("--").partition("=")
        name = written.replace("-", "_")
        if name not in shapes and name.startswith("no_") and shapes.get(name[3:]) == "flag" and not equals:
            table[name[3:]] = False
        elif name not in shapes or not (equals or word.startswith("--")):
            problems.append(f"Unknown argument {word!r}.{did_you_mean(name, shapes)}")
            while queue and not queue[0].startswith("--") and "=" not in queue[0]:
                queue.pop(0)
        elif equals:
            table[name] = value
        elif shapes[name] == "list":
            table[name] = []
            while queue and not queue[0].startswith("--"):
                table[name].append(queue.pop(0))
        elif shapes[name] == "flag":
            spelled = bool(queue) and queue[0].lower() in (*TRUE, *FALSE)
            table[name] = queue.pop(0).lower() in TRUE if spelled else True
        elif queue and not queue[0].startswith("--"):
            table[name] = queue.pop(0)
        else:
            problems.append(f"{written} needs a value.")
    if problems:
        raise ConfigurationError(problems)
    return table
