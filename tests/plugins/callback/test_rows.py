"""Rows of the log in words."""

from __future__ import annotations

import math

import pytest

from drivetrain_plugins.callback.rows import Cell, cells, duration, lines, number

TRAINING = {"loss": 0.25, "learning_rate": 4.5e-05, "epoch": 1.5}
EVALUATION = {
    "eval_loss": 0.5,
    "eval_accuracy": 0.9375,
    "eval_runtime": 2.5,
    "eval_samples_per_second": 1234.5,
    "eval_steps_per_second": 38.6,
    "epoch": 1.0,
}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (183845, "2d 03:04:05"),
     (math.nan, "?"), (math.inf, "?"), (-1, "?")],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.25, "0.2500"), (12.345, "12.35"), (12345.6, "12,346"), (1e-7, "1e-07"), (0.0, "0"), (3, "3"),
     (math.nan, "NaN"), (math.inf, "inf"), (-0.5, "-0.5000"), (True, "True"), ("text", "text")],
)  # fmt: skip
def test_numbers(value: object, shown: str) -> None:
    assert number(value) == shown


def test_a_row_of_training_says_where_the_run_is_and_how_fast() -> None:
    shown = cells(TRAINING, 50, 1000, {"rows_per_second": 2500.0, "seconds_left": 61.0})
    assert "  ".join(map(str, shown)) == (
        "step   50/1000  epoch 1.50  loss 0.2500  lr 4.50e-05  2,500 rows/s  1:01 left"
    )


def test_a_row_of_evaluation_sums_its_speed_up() -> None:
    shown = "  ".join(map(str, cells(EVALUATION, 50, 1000)))
    assert (
        shown == "step   50/1000  epoch 1.00  eval_loss 0.5000  eval_accuracy 0.9375  in 2.50 s  1,234 rows/s"
    )
    assert "runtime" not in shown


def test_outside_training_there_is_no_step() -> None:
    assert str(cells(EVALUATION, 0, 0)[0]) == "epoch 1.00"


def test_lines_hold_every_cell_and_keep_the_width() -> None:
    shown = [Cell(f"metric_{position}", f"{position / 7:.4f}") for position in range(20)]
    for width in (30, 60, 200):
        dealt = lines(shown, width)
        assert [cell for line in dealt for cell in line] == shown
        for position, line in enumerate(dealt):
            text = ("    " if position else "") + "  ".join(map(str, line))
            assert len(text) <= width


def test_a_cell_wider_than_the_terminal_has_its_own_line() -> None:
    wide = Cell("a" * 80, "1")
    assert lines([Cell("x", "1"), wide, Cell("y", "2")], 40) == [[Cell("x", "1")], [wide], [Cell("y", "2")]]
