"""Reads a run's TOML file. Every mistake is told with the file, the line, the key and the nearest match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivetrain.errors import ConfigurationError, did_you_mean
from drivetrain.settings import read_plugins

SECTIONS = ("model", "data", "training", "plugins", "after")


@dataclass(slots=True)
class Config:
    """A run's file, as it was read and overridden on the command line.

    Attributes:
        path: the file. Paths in `[data]` and `[model]` are relative to its folder.
        text: its text, for line numbers.
        model, data, training, after: the tables of these names.
        plugins: options by plugin name.
        enabled: names in `plugins.enable`.
        overridden: dotted keys that the command line set; they have no line.
    """

    path: Path
    text: str
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    enabled: tuple[str, ...] = ()
    after: dict[str, Any] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.resolve().parent

    def where(self, *keys: str) -> str:
        """`"digits.toml, line 3, model.hidden"`, or the option's name where the command line set the key."""
        dotted = ".".join(keys)
        if dotted in self.overridden:
            return "--" + (keys[-1].replace("_", "-") if keys[0] == "training" else dotted)
        line = line_of(self.text, keys)
        return f"{self.path}, line {line}, {dotted}" if line else f"{self.path}, {dotted}"

    def problem(self, keys: tuple[str, ...], sentence: str) -> str:
        """One sentence about one key."""
        return f"{self.where(*keys)}: {sentence}"


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads the file and puts the command line's values over it.

    Args:
        path: the TOML file.
        overrides: values by dotted key (`"training.learning_rate"`, `"model.hidden"`).

    Raises:
        ConfigurationError: every mistake of the file's form.
    """
    import tomlkit
    from tomlkit.exceptions import ParseError, TOMLKitError

    if not path.is_file():
        beside = [str(found) for found in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ConfigurationError(f"There is no config file {path}.{did_you_mean(str(path), beside)}")
    text = path.read_text(encoding="utf-8")
    try:
        tables: dict[str, Any] = tomlkit.parse(text).unwrap()
    except ParseError as error:
        reason = str(error).split(" at line")[0].rstrip(".")
        raise ConfigurationError(f"{path}, line {error.line}: this is not valid TOML ({reason}).") from error
    except TOMLKitError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from error
    config = Config(path, text)
    problems: list[str] = []
    for name, table in tables.items():
        if name not in SECTIONS:
            problems.append(
                config.problem(
                    (name,), f"unknown section.{did_you_mean(name, SECTIONS)} Known: {', '.join(SECTIONS)}."
                )
            )
        elif not isinstance(table, dict):
            problems.append(config.problem((name,), f"this must be a section; write [{name}]."))
        elif name == "plugins":
            config.enabled, config.plugins, more = read_plugins(table, str(path))
            problems += more
        else:
            setattr(config, name, table)
    for dotted, value in (overrides or {}).items():
        _override(config, dotted, value)
    problems += _check_callable(config, "model", ("factory", "transformers"))
    problems += _check_data(config)
    if config.after and "call" not in config.after:
        problems.append(
            config.problem(
                ("after",), f'[after] needs call = "module:callable".{_near("call", config.after)}'
            )
        )
    if problems:
        raise ConfigurationError(problems)
    return config


def _near(wanted: str, table: Iterable[str]) -> str:
    found = did_you_mean(wanted, table)
    return f" You wrote '{found.split(chr(39))[1]}'." if found else ""


def _override(config: Config, dotted: str, value: Any) -> None:
    config.overridden.add(dotted)
    section, _, rest = dotted.partition(".")
    if section == "plugins":
        name, _, key = rest.partition(".")
        config.plugins.setdefault(name, {})[key] = value
    else:
        getattr(config, section)[rest] = value


def _check_callable(config: Config, section: str, choices: tuple[str, ...]) -> list[str]:
    table: dict[str, Any] = getattr(config, section)
    given = [choice for choice in choices if choice in table]
    wanted = " or ".join(f"'{choice}'" for choice in choices)
    if not given:
        near = next((_near(choice, table) for choice in choices if _near(choice, table)), "")
        return [f"{config.where(section)}: [{section}] needs {wanted}.{near}"]
    if len(given) > 1:
        return [config.problem((section, given[1]), f"[{section}] takes one of {wanted}, not both.")]
    if not isinstance(table[given[0]], str):
        return [config.problem((section, given[0]), "this must be a string.")]
    return []


SPLITS = ("train", "eval", "test")
FILE_KEYS = (*SPLITS, "tokenizer", "text_column", "max_length")


def _check_data(config: Config) -> list[str]:
    data = config.data
    if "factory" in data:
        return _check_callable(config, "data", ("factory",))
    if not any(split in data for split in SPLITS):
        near = next((_near(key, data) for key in ("factory", *SPLITS) if _near(key, data)), "")
        return [f"{config.where('data')}: [data] needs 'factory', or files under {', '.join(SPLITS)}.{near}"]
    return [
        config.problem(
            ("data", key), f"unknown key.{did_you_mean(key, FILE_KEYS)} Known: {', '.join(FILE_KEYS)}."
        )
        for key in data
        if key not in FILE_KEYS
    ]


def line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line (from 1) on which a key, or the header of a table, stands; None where it is not seen."""
    header = re.compile(r"^\s*\[\s*([^\[\]]+?)\s*\]")
    current: tuple[str, ...] = ()
    section_line: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        found = header.match(line)
        if found:
            current = _split(found.group(1))
            if current == keys:
                return number
            if current == keys[:1]:
                section_line = number
            continue
        name, equals, _ = line.partition("=")
        if equals and (*current, *_split(name)) == keys:
            return number
    return section_line if len(keys) == 1 else None


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def check_arguments(
    config: Config, keys: tuple[str, ...], function: Callable[..., Any], arguments: Mapping[str, Any]
) -> list[str]:
    """What is wrong with the keyword arguments that a table gives to its callable."""
    import inspect

    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in C, without a signature: the call itself will tell
        return []
    by_name = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = config_name(config, keys)
    problems = [
        config.problem((keys[0], key), f"'{named}' takes no argument '{key}'.{did_you_mean(key, by_name)}")
        for key in arguments
        if key not in by_name and not open_ended
    ]
    problems += [
        config.problem(keys, f"'{named}' needs the argument '{name}'; add {name} = ... under [{keys[0]}].")
        for name, parameter in by_name.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    return problems


def config_name(config: Config, keys: tuple[str, ...]) -> str:
    """The import string that stands under a key."""
    return str(getattr(config, keys[0])[keys[1]])
