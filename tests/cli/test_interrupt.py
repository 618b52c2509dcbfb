"""Ctrl-C in a terminal, which `drivetrain train` has as any program."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.by_hand import environment

from drivetrain.cli.again import again

SLOW = """

class Slow(Line):
    def forward(self, x, labels=None):
        import time
        time.sleep(0.05)
        return super().forward(x, labels)


def slow(width=2):
    return Slow(width)


def late(width=2):
    import time
    print("LATE", flush=True)
    time.sleep(60)
"""


def in_a_terminal(words: list[str], *presses: tuple[str, float]) -> tuple[int, str]:
    """Runs a command in a pseudo-terminal and presses Ctrl-C: each time some seconds after a text is there."""
    main, side = pty.openpty()

    def begin() -> None:
        fcntl.ioctl(side, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal to its group
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's job in the background ignores it

    running = subprocess.Popen(
        words,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=begin,
        env=environment(TERM="dumb", NO_COLOR="1", COLUMNS="500"),
    )
    os.close(side)
    text, left = "", list(presses)
    try:
        while True:
            try:
                got = os.read(main, 4096).decode()
            except OSError:  # its other end is closed
                break
            if not got:
                break
            text += got
            while left and left[0][0] in text:
                time.sleep(left.pop(0)[1])
                os.write(main, b"\x03")
        return running.wait(60), text.replace("\r\n", "\n")
    finally:
        running.kill()
        os.close(main)


@pytest.fixture
def slow(project: Path, edit: Callable[[str, str], None]) -> Path:
    with (project / "line_project.py").open("a") as file:
        file.write(SLOW)
    edit("line_project:model", "line_project:slow")
    edit('logging_strategy = "epoch"', "logging_steps = 1")
    return project


def command(*more: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "drivetrain", "train", "run.toml", *more]


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_the_command_that_resumes(slow: Path) -> None:
    code, text = in_a_terminal(command("--overwrite-output-dir"), ("step  3/16", 0))
    assert code == 130, text
    assert "SIGINT: the run writes a checkpoint and leaves; once more ends it at once." in text
    last = text.splitlines()[-1]
    assert last.startswith("Stopped by SIGINT after step "), text
    assert "Traceback" not in text
    assert "Aborted" not in text
    words = shlex.split(last.partition("Go on with: ")[2])
    assert words == ["drivetrain", "train", "run.toml", "--resume-from-checkpoint"]
    done = subprocess.run(
        command(*words[3:]), env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Done" in done.stdout


@pytest.mark.slow
def test_ctrl_c_twice(slow: Path) -> None:
    """A step that takes long: the second one does not wait for it."""
    with (slow / "line_project.py").open("a") as file:
        file.write("\n\nSlow.forward = lambda self, x, labels=None: (print('BEGUN', flush=True), late())\n")
    # Two signals within a second of each other are one; the second begins when the process has heard the first.
    code, text = in_a_terminal(command(), ("BEGUN", 0), ("once more ends it at once", 1.2))
    assert code == -signal.SIGINT, text
    assert not list((slow / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_ctrl_c_before_the_run_begins(slow: Path, edit: Callable[[str, str], None]) -> None:
    edit("line_project:slow", "line_project:late")
    code, text = in_a_terminal(command(), ("LATE", 0))
    assert code == 130, text
    assert text.splitlines()[-1].endswith("Stopped by SIGINT.")
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("words", "resumed"),
    [
        (["train", "run.toml"], "drivetrain train run.toml --resume-from-checkpoint"),
        (
            [
                "train",
                "a run.toml",
                "--resume-from-checkpoint",
                "out/checkpoint-2",
                "--learning-rate",
                "1e-3",
            ],
            "drivetrain train 'a run.toml' --learning-rate 1e-3 --resume-from-checkpoint",
        ),
        (
            ["train", "run.toml", "--resume_from_checkpoint=x", "--overwrite-output-dir", "true", "--bf16"],
            "drivetrain train run.toml --bf16 --resume-from-checkpoint",
        ),
        (
            ["train", "run.toml", "--overwrite_output_dir", "--resume-from-checkpoint", "--bf16"],
            "drivetrain train run.toml --bf16 --resume-from-checkpoint",
        ),
    ],
)
def test_the_command_that_resumes(words: list[str], resumed: str) -> None:
    assert again(words) == resumed


def test_with_several_processes() -> None:
    options: list[Any] = ["--nproc", "2"]
    assert (
        again(["train", "run.toml"], options)
        == "drivetrain train run.toml --nproc 2 --resume-from-checkpoint"
    )
