"""Options by name into a plugin's dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from drivetrain.errors import ConfigurationError
from drivetrain.options import checked, convert, describe, fill_options


@dataclass(frozen=True)
class Options:
    rate: float = 0.1
    count: int = 3
    flag: bool = False
    word: str = "x"
    maybe: float | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    names: list[str] | None = None
    choice: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("option 'rate' must not be negative.")


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("rate", 1, 1.0),
        ("rate", "1e-3", 1e-3),
        ("count", "7", 7),
        ("count", 7.0, 7),
        ("flag", "Yes", True),
        ("flag", "off", False),
        ("flag", True, True),
        ("word", "none", "none"),
        ("maybe", "none", None),
        ("maybe", "2", 2.0),
        ("pair", [1, 2], (1.0, 2.0)),
        ("pair", "(0.5; 2)", (0.5, 2.0)),
        ("many", [1, "2"], (1, 2)),
        ("names", ["a"], ["a"]),
        ("choice", "b", "b"),
    ],
)
def test_values(name, given, kept):
    found = getattr(fill_options(Options(), {name: given}, "Thing"), name)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("rate", True, "a number, not True"),
        ("rate", "fast", "a number, not 'fast'"),
        ("count", 1.5, "a whole number, not 1.5"),
        ("count", False, "a whole number"),
        ("flag", 1, "true or false, not 1"),
        ("word", 1, "text, not 1"),
        ("maybe", "x", "a number or None, not 'x'"),
        ("pair", [1], r"2 values, each a number, not \[1\]"),
        ("many", 4, "a list, each a whole number"),
        ("names", [1], "a list, each text or None"),
        ("choice", "c", "one of 'a', 'b', not 'c'"),
    ],
)
def test_wrong_values(name, given, words):
    with pytest.raises(ConfigurationError, match=rf"^Thing: option '{name}' must be {words}"):
        fill_options(Options(), {name: given}, "Thing")


def test_all_problems_at_once():
    with pytest.raises(ConfigurationError) as caught:
        fill_options(Options(), {"ratee": 1, "count": "x"}, "Thing")
    assert caught.value.problems == (
        "Thing has no option 'ratee'. Did you mean 'rate'? It has: "
        "choice, count, flag, many, maybe, names, pair, rate, word.",
        "Thing: option 'count' must be a whole number, not 'x'.",
    )


def test_ranges_are_the_dataclasss_own():
    with pytest.raises(ConfigurationError, match="Thing: option 'rate' must not be negative"):
        fill_options(Options(), {"rate": -1}, "Thing")


def test_given_twice():
    assert fill_options(Options(rate=0.5), {"rate": 0.5}, "Thing").rate == 0.5
    with pytest.raises(ConfigurationError, match=r"'rate' is given twice, as 0\.5 and as 0\.7; keep one"):
        fill_options(Options(rate=0.5), {"rate": 0.7}, "Thing")


def test_nothing_given_is_the_same_object():
    options = Options()
    assert fill_options(options, None, "Thing") is options


def test_anything_else_by_its_class():
    assert describe(bytes) == "bytes"
    assert convert(b"x", bytes) == b"x"
    with pytest.raises(TypeError):
        convert(1, bytes)


def test_values_of_plain_types_are_checked_and_others_left_alone() -> None:
    @dataclass(frozen=True)
    class Given:
        rate: float = 0.1
        count: int | None = None
        where: str | None = None
        table: dict[str, int] | None = None

    found, wrong = checked({"rate": 1, "count": 3.0, "where": Path("x"), "table": 7}, Given)
    assert (found, wrong) == ({"rate": 1.0, "count": 3, "where": Path("x"), "table": 7}, [])
    assert checked({"rate": "0.5", "count": True, "where": 3}, Given)[1] == [
        "option 'rate' must be a number, not '0.5'",
        "option 'count' must be a whole number or None, not True",
        "option 'where' must be text or None, not 3",
    ]
