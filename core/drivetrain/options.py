"""Options by name, from a user's dict or text, into the frozen dataclass that a plugin keeps beside it."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from drivetrain.errors import ConfigurationError, did_you_mean

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "y", "on", "t"})
_FALSE = frozenset({"0", "false", "no", "n", "off", "f"})


def fill_options(base: T, values: Mapping[str, Any] | None, subject: str) -> T:
    """A copy of the dataclass instance `base` with `values` set.

    Args:
        base: the options so far.
        values: new ones by name; text is read as the field's type ("0.9", "true", "none").
        subject: who owns the options, for messages: "Scheduler 'cosine'".

    Raises:
        ConfigurationError: an unknown name, a value of the wrong type, or one that `base` was given another
            value for already; every such problem at once.
    """
    if not values:
        return base
    fields = {field.name: field for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    hints = _hints(cast(Any, type(base)))
    problems: list[str] = []
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            problems.append(_unknown(name, fields, subject))
            continue
        try:
            wanted = convert(value, hints[name])
        except (TypeError, ValueError):
            problems.append(f"{subject}: option '{name}' must be {describe(hints[name])}, not {value!r}.")
            continue
        present = getattr(base, name)
        if present != fields[name].default and present != wanted:
            problems.append(
                f"{subject}: option '{name}' is given twice, as {present!r} and as {wanted!r}; keep one."
            )
        changes[name] = wanted
    if problems:
        raise ConfigurationError(problems)
    try:
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]
    except ValueError as error:  # a __post_init__ that checks ranges
        raise ConfigurationError(f"{subject}: {error}") from error


def checked(values: Mapping[str, Any], options: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """The values as their fields' types, where these are numbers, texts, truths or None; others are as they were.

    Args:
        values: by the names of fields.
        options: the dataclass.

    Returns:
        the values, and what is wrong with them: "option 'path' must be text or None, not 3".
    """
    try:
        hints = _hints(cast(Any, options))
    except (NameError, TypeError):  # of names that are there for a type checker alone
        return dict(values), []
    found, problems = dict(values), []
    for name, value in values.items():
        hint = hints.get(name, Any)
        plain = _plain_types(hint)
        if not plain or (str in plain and isinstance(value, (str, os.PathLike))):
            continue
        try:
            if isinstance(value, str):  # of a program, where a command line would have text alone
                raise TypeError(value)
            found[name] = convert(value, hint)
        except (TypeError, ValueError):
            problems.append(f"option {name!r} must be {describe(hint)}, not {value!r}")
    return found, problems


@functools.cache  # a run that reads a checkpoint compiles nothing, not even an annotation once more
def _hints(options: Any) -> Mapping[str, Any]:
    return get_type_hints(options)


def _plain_types(hint: Any) -> tuple[Any, ...]:
    """The types of a hint that is made of nothing else than the plain ones; else none."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return parts if all(part in (bool, int, float, str, type(None)) for part in parts) else ()


def _unknown(name: str, fields: Mapping[str, Any], subject: str) -> str:
    if not fields:
        return f"{subject} has no options; remove '{name}'."
    return (
        f"{subject} has no option '{name}'.{did_you_mean(name, fields)} It has: {', '.join(sorted(fields))}."
    )


def describe(hint: Any) -> str:
    """A type in words: "a number", "true or false", "one of 'a', 'b'"."""
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        parts = [describe(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join(parts) + (" or None" if type(None) in get_args(hint) else "")
    if origin in (tuple, list):
        parts = [part for part in get_args(hint) if part is not Ellipsis]
        if origin is tuple and Ellipsis not in get_args(hint):
            return f"{len(parts)} values, each {describe(parts[0])}"
        return f"a list, each {describe(parts[0])}"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`: text is parsed, whole numbers serve as numbers, lists as tuples.

    Raises:
        TypeError: it is something else.
        ValueError: text that does not read as the type.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint))
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(value)
        return value
    if origin in (tuple, list):
        return _convert_sequence(value, origin, get_args(hint))
    if hint is bool:
        return _convert_bool(value)
    if hint is int:
        return _convert_int(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError(value)
        return float(value)
    if not isinstance(value, hint):
        raise TypeError(value)
    return value


def _convert_union(value: Any, choices: tuple[Any, ...]) -> Any:
    if type(None) in choices and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return convert(value, choice)
        except (TypeError, ValueError):
            continue
    raise TypeError(value)


def _convert_sequence(value: Any, origin: Any, parts: tuple[Any, ...]) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("()[]").replace(";", ",").split(",")]
    if not isinstance(value, list | tuple):
        raise TypeError(value)
    if origin is tuple and Ellipsis not in parts:
        if len(value) != len(parts):
            raise ValueError(value)
        return tuple(convert(item, part) for item, part in zip(value, parts, strict=True))
    return origin(convert(item, parts[0]) for item in value)


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise TypeError(value)


def _convert_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return int(value)
