"""Reads the words behind CONFIG: any training argument, and dotted keys of the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain.errors import ConfigurationError, did_you_mean

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
_DOTTED = ("model", "data", "plugins", "after")


def split_words(words: Sequence[str], kinds: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Tells positional words from options.

    Args:
        words: what stands on the command line.
        kinds: for each training argument: "flag" (may stand alone), "list" (takes words up to the next
            option), or "value".

    Returns:
        the positional words, and values by dotted key, as strings, booleans or lists of strings.

    Raises:
        ConfigurationError: each option that nothing knows, with the nearest match.
    """
    positional: list[str] = []
    values: dict[str, Any] = {}
    problems: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            continue
        if word.startswith("-") and not word.startswith("--") and word != "-":
            problems.append(f"Unknown option '{word}'; options are written --NAME VALUE.")
            continue
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, joined = word[2:].partition("=")
        key = _key(name, kinds)
        negated = False
        if key is None and name.startswith(("no-", "no_")):
            key, negated = _key(name[3:], kinds), True
            if key is not None and kinds.get(key.partition(".")[2]) != "flag":
                key = None
        if key is None:
            spellings = [known.replace("_", "-") for known in kinds]
            near = did_you_mean(name.replace("_", "-"), spellings).replace("'", "'--", 1)
            problems.append(f"Unknown option '--{name}'.{near} `drivetrain args` lists them all.")
            _skip_value(queue)
            continue
        kind = kinds.get(key.partition(".")[2], "value") if key.startswith("training.") else "value"
        if negated:
            values[key] = False
        elif equals:
            values[key] = _plain(joined, kind)
        elif kind == "flag":
            values[key] = _flag(queue)
            if positional and queue and not queue[0].startswith("-"):
                problems.append(f"Option '--{name}' is true or false, and not {queue.pop(0)!r}.")
        elif kind == "optional":
            values[key] = queue.pop(0) if queue and not queue[0].startswith("--") else True
        elif kind == "list":
            taken = []
            while queue and not queue[0].startswith("--"):
                taken.append(queue.pop(0))
            values[key] = taken
        elif queue and not queue[0].startswith("--"):
            values[key] = _plain(queue.pop(0), kind)
        else:
            problems.append(f"Option '--{name}' needs a value.")
    if problems:
        raise ConfigurationError(problems)
    return positional, values


def _key(name: str, kinds: Mapping[str, str]) -> str | None:
    section, dot, rest = name.partition(".")
    if dot and section in _DOTTED and rest:
        return f"{section}.{rest}"
    argument = name.replace("-", "_")
    return f"training.{argument}" if argument in kinds else None


def _skip_value(queue: list[str]) -> None:
    if queue and not queue[0].startswith("--"):
        queue.pop(0)


def _flag(queue: list[str]) -> bool:
    if queue and queue[0].lower() in (*TRUE, *FALSE):
        return queue.pop(0).lower() in TRUE
    return True


def _plain(word: str, kind: str) -> Any:
    if kind == "flag" and word.lower() in (*TRUE, *FALSE):
        return word.lower() in TRUE
    return word


def typed(word: Any) -> Any:
    """The TOML value that a word spells (`256`, `0.1`, `true`, `["a"]`), or the word itself.

    For the keys of `[model]`, `[data]` and a plugin's options, whose types the command line does not know.
    """
    if not isinstance(word, str):
        return word
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.value(word).unwrap()
    except (TOMLKitError, ValueError):
        return word
