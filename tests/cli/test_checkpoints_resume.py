"""`drivetrain checkpoints verify-resume`: exact is proved, and what is not is found and named. Real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HIDDEN = """
import random


class Forgetful(Line):
    def __init__(self, width):
        super().__init__(width)
        self.calls = 0

    def forward(self, x, labels=None):
        self.calls += 1
        return super().forward(x * (1 + self.calls / 100), labels)


class Noise(TrainerCallback):
    def __init__(self):
        self.generator = random.Random(3)

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["weight_decay"] = self.generator.random() / 10


def forgetful(width=2):
    return Forgetful(width)


def noisy_data(count=64):
    return {**data(count), "callbacks": [Noise()]}
"""

CLOCK = """
import time


class Clock(Line):
    def forward(self, x, labels=None):
        return super().forward(x + time.time_ns() % 1000 / 1e5, labels)


def clock(width=2):
    return Clock(width)
"""


def verify(folder: Path, *words: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "drivetrain", "checkpoints", "verify-resume", *words],
        capture_output=True, text=True, timeout=280, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def add(project: Path, text: str) -> None:
    path = project / "line_project.py"
    path.write_text(path.read_text() + "\nfrom drivetrain import TrainerCallback\n" + text)


@pytest.mark.slow
def test_the_digits_example_is_exact(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with it")
    config = Path(__file__).parents[2] / "examples" / "digits.toml"
    done = verify(tmp_path, str(config), "--steps", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "Exact: 6 steps in one go, and 3 and a resume, end the same bit for bit: 8 tensors of the weights"
        in done.stdout
    )
    assert list(tmp_path.iterdir()) == []  # nothing is written where the command was given


@pytest.mark.slow
def test_what_is_kept_nowhere_is_found_and_named(project: Path) -> None:
    add(project, HIDDEN)
    done = verify(
        project, "run.toml", "--steps", "8", "--model.factory", "line_project:forgetful",
        "--data.factory", "line_project:noisy_data", "--keep", "kept",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    text = done.stdout
    assert "Not exact" in text
    assert "The log differs first in its row 5 (step 5)/loss" in text
    assert "The first tensor that differs is weights layer.bias (2 of 2 differ, by at most" in text
    assert (
        "These change while training and are in no checkpoint: the model's Forgetful.calls, "
        "the callback Noise.generator." in text
    )
    kept = {path.name for path in (project / "kept" / "whole").iterdir()}
    assert {"checkpoint-4", "checkpoint-8"} <= kept


@pytest.mark.soak
def test_a_run_that_is_another_at_every_start_is_told_apart(project: Path) -> None:
    add(project, CLOCK)
    done = verify(project, "run.toml", "--steps", "2", "--model.factory", "line_project:clock")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Two runs from the beginning differ already at step 1, so it is not the resume" in done.stdout


@pytest.mark.soak
def test_two_processes_and_async_saves(project: Path) -> None:
    done = verify(project, "run.toml", "--steps", "4", "--nproc", "2", "--save-async")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Exact" in done.stdout


def test_a_run_that_fails_proves_nothing(project: Path) -> None:
    done = verify(project, "run.toml", "--learning-rat", "3")
    assert done.returncode == 2
    assert "Unknown option '--learning-rat'. Did you mean '--learning-rate'?" in done.stderr
    assert "Nothing is proved: the run of 20 steps in one go failed (exit code 2)." in done.stderr


def test_steps_must_be_even(project: Path, drivetrain: Any) -> None:
    result = drivetrain("checkpoints", "verify-resume", "run.toml", "--steps", "5")
    assert result.exit_code == 2
    assert "--steps 5 cannot be halved: give an even number, at least 2." in result.stderr
