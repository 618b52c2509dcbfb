"""What a project has switched on: `drivetrain.toml`, or `[tool.drivetrain]` of its `pyproject.toml`.

    [plugins]
    enable = ["gradient_norms"]

    [plugins.gradient_norms]
    every = 10

The file is looked for in the current folder and then in each folder above it; the first one found counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivetrain.errors import ConfigurationError, did_you_mean

FILE = "drivetrain.toml"
ENABLE = "enable"
_KEYS = ("plugins",)
_MENTION = re.compile(r"\btool[\s.\"'\]]*drivetrain|^\s*[\"']?drivetrain[\"']?\s*[.=]", re.MULTILINE)

CHOSEN_BY: dict[str, str] = {
    "strategy": 'strategy = "{name}"',
    "precision": 'precision = "{name}"',
    "optimizer": 'optim = "{name}"',
    "scheduler": 'lr_scheduler_type = "{name}"',
    "logger": 'report_to = "{name}"',
    "hub": "push_to_hub = true",
    "search": 'trainer.hyperparameter_search(backend="{name}")',
    "launcher": "the way in which the processes are started",
    "report": "drivetrain report -o FILE.{name}",
}
"""Kinds whose plugins are never switched on by name, and what chooses them instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a project.

    Attributes:
        path: the file that holds them, or None where there is none.
        enabled: names of the plugins that are switched on, in the file's order.
        options: options by plugin name.
    """

    path: Path | None = None
    enabled: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def find(start: str | os.PathLike[str] | None = None) -> Path | None:
    """The settings file that counts in the folder `start` (by default the current one), or None.

    Raises:
        ConfigurationError: one folder has both forms, or a file cannot be parsed.
    """
    folder = Path(start) if start is not None else Path.cwd()
    for place in (folder.resolve(), *folder.resolve().parents):
        own, shared = place / FILE, place / "pyproject.toml"
        in_shared = _has_table(shared)
        if own.is_file():
            if in_shared:
                raise ConfigurationError(
                    f"{own} and [tool.drivetrain] of {shared} both hold settings; keep one of the two."
                )
            return own
        if in_shared:
            return shared
    return None


def load(start: str | os.PathLike[str] | None = None) -> Settings:
    """The settings in force in the folder `start`; empty ones where there is no file.

    Raises:
        ConfigurationError: a file cannot be parsed or holds what it should not.
    """
    path = find(start)
    if path is None:
        return Settings()
    names, options, problems = _read(path)
    problems += not_enabled(names, f"{path}, plugins.{ENABLE}")
    if problems:
        raise ConfigurationError(problems)
    return Settings(path, names, options)


def not_enabled(names: Iterable[str], where: str) -> list[str]:
    """What is wrong with names that are to be enabled: not installed, or chosen by an argument.

    Args:
        names: as written.
        where: what holds them, for messages.
    """
    from drivetrain.discover import entries

    problems: list[str] = []
    for name in names:
        kinds = [entry.kind for entry in entries() if entry.name == name]
        if not kinds:
            problems.append(f"{where}: {unknown_plugin(name, (entry.name for entry in entries()))}")
        elif all(kind in CHOSEN_BY for kind in kinds):
            problems.append(f"{where}: {refusal(kinds[0], name)}")
    return problems


def refusal(kind: str, name: str) -> str:
    """Why a plugin of a kind cannot be switched on by name, and what to do."""
    return f"The {kind} '{name}' is not enabled by name: {CHOSEN_BY[kind].format(name=name)} chooses it."


def _read(path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, Any]], list[str]]:
    table = _table(_document(path), path)
    problems = [
        f"{path}: unknown key '{key}'.{did_you_mean(key, _KEYS)} Known: {', '.join(_KEYS)}."
        for key in table
        if key not in _KEYS
    ]
    names, options, more = read_plugins(table.unwrap().get("plugins", {}), str(path))
    return names, options, problems + more


def read_plugins(table: Any, where: str) -> tuple[tuple[str, ...], dict[str, dict[str, Any]], list[str]]:
    """Reads a `[plugins]` table: the names enabled, the options by name, and what is wrong with it."""
    problems: list[str] = []
    if not isinstance(table, Mapping):
        return (), {}, [f"{where}: 'plugins' must be a table; write [plugins]."]
    names: Any = table.get(ENABLE, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems.append(f'{where}: plugins.{ENABLE} must be a list of names; write {ENABLE} = ["NAME"].')
        names = []
    options: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        if key == ENABLE:
            continue
        if isinstance(value, Mapping):
            options[key] = dict(value)
        else:
            problems.append(f"{where}: plugins.{key} must be a table of options; write [plugins.{key}].")
    return tuple(dict.fromkeys(names)), options, problems


def enabled_names(start: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """The names that the settings file switches on, as written, whether or not they are installed."""
    path = find(start)
    return _read(path)[0] if path is not None else ()


def enable(name: str, start: str | os.PathLike[str] | None = None) -> tuple[Path, bool]:
    """Switches a plugin on; comments and order of the file stay as they are.

    Returns:
        the file, and whether it was changed (False: the plugin was on already).
    """
    return _edit(start, add=name)


def disable(name: str, start: str | os.PathLike[str] | None = None) -> tuple[Path | None, bool]:
    """Switches a plugin off; its options stay in the file for the next time."""
    if find(start) is None:
        return None, False
    return _edit(start, remove=name)


def _edit(
    start: str | os.PathLike[str] | None, *, add: str | None = None, remove: str | None = None
) -> tuple[Path, bool]:
    import tomlkit

    path = find(start) or (Path(start) if start is not None else Path.cwd()) / FILE
    known: tuple[str, ...] = ()
    if path.is_file():
        known, _, problems = _read(path)
        if problems:
            raise ConfigurationError(problems)
    if (add is not None and add in known) or (remove is not None and remove not in known):
        return path, False
    document = _document(path) if path.is_file() else tomlkit.document()
    table = _table(document, path)
    plugins = table.get("plugins")
    if plugins is None or ENABLE not in plugins:
        # The key must stand before the tables of options, or it would belong to the last of them.
        fresh = tomlkit.table()
        fresh[ENABLE] = tomlkit.array()
        for key, value in (plugins or {}).items():
            fresh[key] = value
        table["plugins"] = fresh
        plugins = table["plugins"]
        plugins.trivia.comment = ""  # tomlkit would show that of the first sub-table here as well
    names = plugins[ENABLE]
    if add is not None:
        names.append(add)
    else:
        while remove in names:
            names.remove(remove)
    _write(path, tomlkit.dumps(document))
    return path, True


def _has_table(shared: Path) -> bool:
    """Whether a pyproject.toml has `[tool.drivetrain]`; most have not, which is seen without parsing them."""
    if not shared.is_file() or not _MENTION.search(shared.read_text(encoding="utf-8", errors="replace")):
        return False
    return "drivetrain" in _document(shared).get("tool", {})


def _document(path: Path) -> Any:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from error


def _table(document: Any, path: Path) -> Any:
    return document["tool"]["drivetrain"] if path.name == "pyproject.toml" else document


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def unknown_plugin(name: str, installed: Iterable[str]) -> str:
    """One sentence about a name that no installed plugin has."""
    names = sorted(set(installed))
    return f"Unknown plugin '{name}'.{did_you_mean(name, names)} `drivetrain plugins list` shows those installed."
