"""Which plugins are installed, from entry-point metadata alone: nothing that they name is imported."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass

from drivetrain.errors import ConfigurationError, PluginError, did_you_mean
from drivetrain.plugin import KINDS, Kind, PluginInfo, import_string

PREFIX = "drivetrain."


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point: a plugin that is installed, whether or not it can be loaded.

    Attributes:
        kind: the group's last word.
        name: the plugin's name.
        value: `"package.module:INFO"`.
        distribution: name of the distribution that brought it.
        version: version of that distribution.
    """

    kind: Kind
    name: str
    value: str
    distribution: str
    version: str


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every plugin installed, in the order of kinds and then of names."""
    found: dict[tuple[str, str, str, str], Entry] = {}
    points = importlib.metadata.entry_points()

    @functools.cache  # each look at a name or version would parse the distribution's metadata again
    def origin(dist: importlib.metadata.Distribution | None) -> tuple[str, str]:
        return (dist.metadata["Name"], dist.version) if dist is not None else ("?", "?")

    for kind in KINDS:
        for point in points.select(group=PREFIX + kind):
            distribution, version = origin(point.dist)
            # The same distribution can stand twice on the path (editable beside a wheel): one entry.
            key = (kind, point.name, distribution, point.value)
            found.setdefault(key, Entry(kind, point.name, point.value, distribution, version))
    order = {kind: place for place, kind in enumerate(KINDS)}
    return tuple(sorted(found.values(), key=lambda entry: (order[entry.kind], entry.name)))


def names(kind: str) -> list[str]:
    """Names of the installed plugins of a kind, sorted."""
    return sorted({entry.name for entry in entries() if entry.kind == kind})


def find(kind: str, name: str) -> Entry:
    """The entry of a plugin.

    Raises:
        ConfigurationError: no plugin of that name is installed, or two distributions bring one.
    """
    found = [entry for entry in entries() if entry.kind == kind and entry.name == name]
    if not found:
        raise ConfigurationError(unknown(kind, name, names(kind)))
    if len(found) > 1:
        owners = " and ".join(sorted(entry.distribution for entry in found))
        raise ConfigurationError(
            f"The {kind} {name!r} is brought by two distributions, {owners}; uninstall one of them."
        )
    return found[0]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence about a name that is no plugin."""
    installed = ", ".join(sorted(known)) or "none"
    return f"Unknown {kind} {name!r}.{did_you_mean(name, known)} Installed: {installed}."


@functools.cache
def load_info(kind: str, name: str) -> PluginInfo:
    """Imports what an entry point names, and checks that it is the info of that plugin.

    Raises:
        ConfigurationError: there is no such plugin.
        PluginError: its info cannot be imported, or is not what the entry point says.
    """
    entry = find(kind, name)
    try:
        info = import_string(entry.value)
    except Exception as error:
        raise PluginError(
            f"{kind.capitalize()} {name!r} of {entry.distribution} {entry.version} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(info, PluginInfo):
        raise PluginError(
            f"{kind.capitalize()} {name!r} of {entry.distribution} names {entry.value}, "
            f"which is no PluginInfo but a {type(info).__name__}."
        )
    if (info.kind, info.name) != (kind, name):
        raise PluginError(
            f"{entry.distribution} registers {kind} {name!r}, but {entry.value} calls itself "
            f"{info.kind} {info.name!r}."
        )
    return info


def refresh() -> None:
    """Forgets what was found, after a distribution was installed or removed in this very process."""
    importlib.invalidate_caches()
    entries.cache_clear()
    load_info.cache_clear()
