"""Loggers that are not done when the process ends, by itself or because it is told to; and workers that are forked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "exit_script.py"
TESTS = Path(__file__).parents[2]
LIMIT = 240.0


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The script, in a group of its own that does not outlive the test."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_at_the_end_of_the_process_rows_are_written_and_what_hangs_is_left(tmp_path: Path) -> None:
    with process(str(tmp_path)) as started:
        said, _ = started.communicate(timeout=LIMIT)  # a worker that waits for a lock of import hangs here
        assert started.returncode == 0, said
    history = rows(tmp_path / "history.json")
    assert len(history) == 9
    assert rows(tmp_path / "written.json") == history
    assert "Logger 'never' does not keep up: 9 rows of the log are still to be written." in said
    assert (
        "Logger 'never' was not done 2 s (close_timeout) after the end of the process began, and is left: 9 rows of "
        "the log are not in it." in said
    )


def test_a_run_that_is_told_to_leave_writes_its_rows_and_leaves_with_its_code(tmp_path: Path) -> None:
    with process(str(tmp_path), "wait") as started:
        assert started.stdout is not None
        while "loss" not in (line := started.stdout.readline()):
            assert line, "it has ended"
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=LIMIT)
        assert started.returncode == 75, said
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert rows(tmp_path / "written.json")[: len(history)] == history
    assert "Logger" not in said
