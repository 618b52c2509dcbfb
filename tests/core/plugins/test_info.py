"""What a PluginInfo must say."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from drivetrain import PluginInfo
from drivetrain.plugin import import_string


def info(**values: Any) -> PluginInfo:
    return PluginInfo(**{"name": "x", "kind": "callback", "summary": "", "implementation": "a:b", **values})


@dataclass(frozen=True)
class Options:
    every: int = 1


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'x' has the kind 'strateggy'; known: strategy, precision"):
        info(kind="strateggy")


def test_a_transform_says_its_place() -> None:
    with pytest.raises(ValueError, match="must say its place: 'before_wrap' or 'after_prepare'"):
        info(kind="transform")
    with pytest.raises(ValueError, match="must say its place: 'before_wrap' or 'after_prepare'"):
        info(kind="transform", place="somewhere")
    assert info(kind="transform", place="before_wrap").place == "before_wrap"


def test_an_implementation_is_module_and_attribute() -> None:
    with pytest.raises(ValueError, match=r"must name its implementation as 'package.module:attribute'"):
        info(implementation="package.module.attribute")


def test_an_info_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        info().name = "y"  # type: ignore[misc]


def test_options_by_class_or_by_string() -> None:
    assert info().options_class() is None
    assert info(options=Options).options_class() is Options
    assert info(options="collections:OrderedDict").options_class().__name__ == "OrderedDict"  # type: ignore[union-attr]


def test_import_string() -> None:
    assert import_string("os:path.join") is __import__("os").path.join
    with pytest.raises(ImportError):
        import_string("no_such_module_at_all:x")
    with pytest.raises(AttributeError):
        import_string("os:no_such")
