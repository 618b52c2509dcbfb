"""The lower lines of a terminal, where `tee` writes to the same terminal: its line and the line's end may come apart."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.terminal import Terminal

from drivetrain_plugins.callback.region import Region

BAR = ["Training  ------------------------------", "loss 1.0  lr 2e-5"]


@contextmanager
def shown(monkeypatch: pytest.MonkeyPatch, rows: int) -> Iterator[tuple[Terminal, Region]]:
    """A region on a terminal, while standard output leads into a pipe."""
    terminal = Terminal(60, rows)
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        region = Region(terminal.stream, lambda columns: BAR)
        region.open()
        try:
            yield terminal, region
        finally:
            region.close(keep=True)
            monkeypatch.undo()
            terminal.close()


def tee(terminal: Terminal, text: str) -> None:
    """What the program at the end of the pipe writes."""
    os.write(terminal.writer, text.encode())


@pytest.mark.parametrize("rows", [40, 5])  # the lines move up where they are few
def test_a_line_that_comes_in_two_parts_stays(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    expected = []
    with shown(monkeypatch, rows) as (terminal, region):
        for number in range(8):
            region.clear()
            if number % 2:
                region.draw()
            expected.append(f"step {number} of the table")
            tee(terminal, expected[-1])
            region.draw()
            region.clear()
            region.draw()
            tee(terminal, "\n")
            if number % 3:
                region.draw()
    assert [line for line in terminal.lines() if line] == [*expected, *BAR]


@pytest.mark.parametrize("rows", [40, 6])
def test_what_is_printed_between_the_parts_begins_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    expected = []
    with shown(monkeypatch, rows) as (terminal, region):
        for number in range(8):
            region.draw()
            tee(terminal, f"step {number} of the table")
            region.above(f"warning {number}")
            tee(terminal, "\n")
            region.draw()
            region.above(f"another {number}")
            expected += [f"step {number} of the table", f"warning {number}", f"another {number}"]
    assert [line for line in terminal.lines() if line] == [*expected, *BAR]


def test_the_cursor_rests_above_the_lines_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(monkeypatch, 40) as (terminal, region):
        region.draw()
        end = time.monotonic() + 60
        while not terminal.text().endswith(BAR[-1]) and time.monotonic() < end:
            time.sleep(0.02)
        assert (terminal.screen.cursor.y, terminal.screen.cursor.x) == (0, 0)
        assert not terminal.screen.cursor.hidden


def test_a_line_goes_into_the_pipe_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python writes at once (`python -u`), `print` writes a line in as many pieces as it is made of."""
    terminal = Terminal(60, 10)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with (
        os.fdopen(reader, "rb", 0) as end,
        io.TextIOWrapper(os.fdopen(writer, "wb", 0), write_through=True) as pipe,
    ):
        monkeypatch.setattr(sys, "stdout", pipe)
        region = Region(terminal.stream, lambda columns: BAR)
        region.open()
        print("a", "script", end="")
        assert end.read(100) is None
        print(" speaks")
        assert end.read(100) == b"a script speaks\n"
        for hand_on in (region.draw, sys.stdout.flush, lambda: region.close(keep=True)):
            print("half", "a line", end="")
            hand_on()
            assert end.read(100) == b"half a line"
        monkeypatch.undo()
    terminal.close()
