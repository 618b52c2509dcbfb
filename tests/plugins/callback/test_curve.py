"""A curve in a line of text."""

from __future__ import annotations

import math

from drivetrain_plugins.callback.curve import Curve


def of(values: list[float], most: int = 128) -> Curve:
    curve = Curve(most)
    for value in values:
        curve.add(value)
    return curve


def test_it_has_the_form_of_the_values() -> None:
    assert of([8, 7, 6, 5, 4, 3, 2, 1]).drawn(8) == "██▇▇▆▅▃▁"  # a logarithm
    assert of([-4, -3, -2, -1, 0, 1, 2, 3]).drawn(8) == "▁▂▃▄▅▆▇█"
    assert of([1, 1, 1]).drawn(8) == "▁▁▁"
    assert of([0.0, 1.0]).drawn(8) == "▁█"
    assert of([1.0]).drawn(8) == ""
    assert of([]).drawn(8) == ""


def test_nan_and_infinity_are_seen() -> None:
    assert of([2.0, math.nan, 1.0]).drawn(8) == "█!▁"
    assert of([math.inf, math.nan]).drawn(8) == "!!"


def test_memory_is_bounded_and_the_form_stays() -> None:
    curve = of([math.exp(-step / 20_000) for step in range(100_000)], most=64)
    assert len(curve._entries) < 64
    drawn = curve.drawn(20)
    assert len(drawn) == 20
    assert drawn[0] == "█"
    assert drawn[-1] == "▁"
    assert sorted(drawn, reverse=True) == list(drawn)
