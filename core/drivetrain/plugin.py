"""What a plugin says about itself, light enough to be read without importing the plugin.

An entry point names a `PluginInfo`; the `PluginInfo` names its implementation by a string, which is
imported only when the plugin is active. The module that holds the info must not import torch or the
engine it wraps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, get_args

import pluggy

PROJECT = "drivetrain"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Kind = Literal[
    "strategy",
    "precision",
    "optimizer",
    "scheduler",
    "transform",
    "logger",
    "hub",
    "callback",
    "search",
    "launcher",
    "report",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Exactly one of these is active in every run; of `hub`, `search` and `launcher` at most one; of `report` none.
SLOTS: tuple[Kind, ...] = ("strategy", "precision", "optimizer", "scheduler")
AT_MOST_ONE: tuple[Kind, ...] = ("hub", "search", "launcher")

Place = Literal["before_wrap", "after_prepare"]


class Weight(IntEnum):
    """How strongly a plugin claims to be chosen. The heaviest claim wins; two equals are a conflict."""

    DEFAULT = 0  # nothing was asked for
    ENVIRONMENT = 1  # several processes, for instance
    ARGUMENT = 2  # the user set an argument that means this plugin


@dataclass(frozen=True, slots=True)
class Claim:
    """Why a plugin should be active, in words the user wrote: `Claim("bf16=True")`."""

    reason: str
    weight: Weight = Weight.ARGUMENT


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """The face of a plugin.

    Attributes:
        name: the entry point's name, and the word a user writes.
        kind: the slot or group it belongs to.
        summary: one line, shown by `drivetrain plugins list`.
        implementation: `"package.module:attribute"`; called with the plugin's options (an instance of
            `options`, or nothing where there are none), it returns the object whose hooks are registered.
        options: a frozen dataclass of the plugin's own options, or `"package.module:Class"`.
        arguments: names of the `TrainingArguments` that this plugin reads while it is active.
        requires: requirement strings (PEP 508) that must be installed.
        extra: the extra of the distribution that brings them, for the pip line.
        distribution: the distribution that the extra belongs to.
        chosen_by: reads the arguments and claims the slot, or returns None. Plugins that are chosen by
            name alone leave it out.
        probe: reads the arguments and returns why the plugin cannot do what they ask here, as one or
            several whole sentences; None or nothing where it can. Runs only when the plugin is chosen.
        place: for transforms, where in the set-up the model is given to them.
        before: names of plugins of the same kind that must come later than this one.
        after: names of plugins of the same kind that must come earlier.
        shards: for strategies, whether each process holds only a part of the weights. The whole model is then
            put on no device before `prepare`, and `save_model` is a collective.
        restarts: for strategies, whether several processes can make a new process group after one of them failed in
            the midst of a step, and close the run and begin anew (`auto_find_batch_size`) or give the state of the
            last update (`save_on_exception`).
        by_name_alone: for loggers, whether `report_to="all"` leaves this one out: it writes where it is named.
        conflicts: `"kind:name"` of plugins that cannot be active together with this one, and the cure.
    """

    name: str
    kind: Kind
    summary: str
    implementation: str
    options: type[Any] | str | None = None
    arguments: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    extra: str | None = None
    distribution: str = "drivetrain"
    chosen_by: Callable[[Any], Claim | None] | None = None
    probe: Callable[[Any], str | Iterable[str] | None] | None = None
    place: Place | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    shards: bool = False
    restarts: bool = False
    by_name_alone: bool = False
    conflicts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Plugin {self.name!r} has the kind {self.kind!r}; known: {', '.join(KINDS)}.")
        if self.kind == "transform" and self.place not in get_args(Place):
            raise ValueError(f"Transform {self.name!r} must say its place: 'before_wrap' or 'after_prepare'.")
        if ":" not in self.implementation:
            raise ValueError(
                f"Plugin {self.name!r} must name its implementation as 'package.module:attribute'."
            )

    def options_class(self) -> type[Any] | None:
        """The dataclass of the plugin's options, imported when named by a string."""
        if isinstance(self.options, str):
            found: type[Any] = import_string(self.options)
            return found
        return self.options


def import_string(path: str) -> Any:
    """The object that `"package.module:attribute"` names.

    Raises:
        ImportError: the module is not there.
        AttributeError: the module has no such attribute.
    """
    module_name, _, attribute = path.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
