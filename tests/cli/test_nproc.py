"""`--nproc`: one command, several processes, one voice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.by_hand import environment

from drivetrain.cli.again import LEFT

Edit = Callable[[str, str], None]
Command = Callable[..., Any]

ACTING = """
import atexit, os, time

if os.environ.get("ACT") == f"late:{os.environ.get('RANK')}":
    atexit.register(time.sleep, 8)  # the others, whom gloo holds up for 5 s at most, could end meanwhile

class Acting(Line):
    '''Does at its third batch what $ACT says, in the first attempt.'''

    def forward(self, x, labels=None):
        import os, signal, time
        self.calls = getattr(self, "calls", 0) + 1
        act, rank = os.environ.get("ACT", ":").split(":")
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and os.environ.get("RANK") == rank and self.calls == 3:
            if act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if act in ("raise", "late"):
                raise ValueError("my own fault")
            if act == "sleep":
                print("ASLEEP", flush=True)
                end = time.monotonic() + 120
                while time.monotonic() < end:
                    time.sleep(0.1)
            if act == "pause":
                print("ASLEEP", flush=True)
            if act.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, act))
        if act == "pause":
            time.sleep(0.02)
        return super().forward(x, labels)


def acting(width=2):
    return Acting(width)
"""


def words(*more: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "drivetrain", "train", "run.toml", "--nproc", "2", *more]


def run(*more: str, act: str = ":") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(*more), capture_output=True, text=True, timeout=200, check=False, env=environment(ACT=act)
    )


@pytest.fixture
def acting(project: Path, edit: Edit) -> Path:
    with (project / "line_project.py").open("a") as file:
        file.write(ACTING)
    edit("line_project:model", "line_project:acting")
    edit('evaluation_strategy = "epoch"\n', "save_steps = 2\n")
    edit('save_strategy = "epoch"', 'save_strategy = "steps"')
    return project


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--nproc", "0"], "--nproc 0 is no number of processes: write a number, or auto."),
        (["--nproc", "two"], "--nproc two is no number of processes: write a number, or auto."),
        (["--max-restarts", "1"], "How many processes each machine starts is said by --nproc N."),
        (["--nproc", "2", "--max-restarts", "-1"], "--max-restarts -1 is no number of restarts"),
        (["--nproc", "2", "--nnodes", "2:1"], "--nnodes 2:1 is no number of machines: write 2, or 1:4"),
        (["--nproc", "2", "--nnodes", "2"], "--nnodes needs --rdzv-endpoint HOST:PORT"),
        (["--nproc", "2", "--nnodes", "2"], "--nnodes needs --rdzv-id NAME"),
        (
            ["--nproc", "2", "--rdzv-endpoint", "node1"],
            "--rdzv-endpoint node1 lacks its port: write HOST:PORT.",
        ),
    ],
)
def test_options_that_do_not_fit(
    project: Path, drivetrain: Command, options: list[str], sentence: str
) -> None:
    result = drivetrain("train", "run.toml", *options)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_auto_counts_cuda_devices(project: Path, drivetrain: Command) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA devices")
    result = drivetrain("train", "run.toml", "--nproc", "auto")
    assert result.exit_code == 2
    assert "--nproc auto counts CUDA devices, and this machine has none: write --nproc N." in result.stderr


def test_one_of_several_starts_no_more(
    project: Path, drivetrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = drivetrain("train", "run.toml", "--nproc", "2")
    assert result.exit_code == 2
    assert "this one is already one of 2: leave --nproc out, or the launcher." in result.stderr


@pytest.mark.slow
def test_two_processes_and_one_voice(project: Path) -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training: run.toml") == 1
    assert done.stdout.count("Done") == 1
    assert "8 a device x 2 processes" in done.stdout
    assert "strategy   ddp" in done.stdout
    assert done.stderr == ""
    state = json.loads((project / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 8
    evaluated = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "drivetrain", "predict", "run.toml", "--nproc", "2", "--checkpoint", "out"],
        capture_output=True, text=True, timeout=200, check=False, env=environment(),
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.count("Done") == 1


@pytest.mark.slow
def test_a_mistake_is_said_once(project: Path) -> None:
    done = run("--learnin-rate", "1")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines == [
        "Error: Unknown option '--learnin-rate'. Did you mean '--learning-rate'? `drivetrain args` lists them all."
    ]


SPEAKS = """
import os, signal
from drivetrain import peers
from drivetrain.cli.console import clean_errors
from drivetrain.errors import DrivetrainError

peers.connect(lambda reason: os.kill(os.getpid(), signal.SIGTERM), None)  # the launcher, who has heard of it

@clean_errors
def command():
    raise DrivetrainError("my mistake")

try:
    command()
except BaseException as error:  # typer's
    raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize(("started", "ended"), [({LEFT: "here"}, 2), ({}, -signal.SIGTERM)])
def test_a_process_that_the_launcher_ends_has_its_last_word(
    tmp_path: Path, started: dict[str, str], ended: int
) -> None:
    """Else the launcher would let another say it again."""
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS],
        capture_output=True, text=True, timeout=200, check=False, env=environment(**started), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == ended
    assert done.stderr.count("Error: my mistake") == (ended == 2)


@pytest.mark.slow
@pytest.mark.parametrize("act", ["raise:1", "late:1"])
def test_an_error_on_one_process_shows_its_traceback(acting: Path, act: str) -> None:
    done = run(act=act)
    assert done.returncode == 1
    assert "Error: Another process of this run has failed: rank 1 by ValueError: my own fault" in done.stderr
    assert "in forward" in done.stderr  # of the traceback of rank 1, which has no voice otherwise
    assert done.stderr.splitlines()[-1] == "Rank 1 ended with exit code 1, and the others with it."
    assert "torch.distributed.elastic" not in done.stderr


@pytest.mark.slow
def test_a_killed_process_is_named(acting: Path) -> None:
    done = run(act="kill:1")
    assert done.returncode == 128 + signal.SIGKILL
    # The launcher ends the others by SIGTERM, of which they may hear before they miss the one.
    said = [line for line in done.stderr.splitlines() if not line.startswith("SIGTERM: ")]
    assert said == [
        "Error: Another process of this run has ended: rank 1, without a word, as when it is killed or finds no memory.",
        "Rank 1 was ended by SIGKILL (by hand, or for want of memory), and the others with it.",
    ]


@pytest.mark.slow
@pytest.mark.soak
def test_a_killed_process_and_restarts(acting: Path) -> None:
    done = run("--max-restarts", "2", act="kill:1")
    assert done.returncode == 0, done.stderr
    assert (
        "Process 1 of this machine was ended by SIGKILL (by hand, or for want of memory); all are started anew (1 of 2)."
        in done.stderr
    )
    assert "the run goes on from out/checkpoint-2" in done.stderr
    state = json.loads((acting / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 8


def told(number: signal.Signals, *, twice: bool) -> tuple[int, str]:
    """The command's exit code and errors, when it is sent a signal in the middle of a step; no process is left."""
    running = subprocess.Popen(
        words("--save_steps=500", "--num-train-epochs", "50", "--overwrite-output-dir"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(ACT="sleep:0" if twice else "pause:0"),
    )
    try:
        assert running.stdout is not None
        while "ASLEEP" not in (line := running.stdout.readline()):
            assert line or running.poll() is None
        children = _children(running.pid)
        assert len(children) >= 2
        running.send_signal(number)
        if twice:
            time.sleep(3)
            running.send_signal(number)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert "Traceback" not in err
    end = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    return running.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.soak),
        (signal.SIGUSR1, 75),
    ],
)
def test_a_signal_has_all_save_and_leave(acting: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C in a terminal, or an end that a queue asks for: the step is done, and the same command goes on."""
    ended, err = told(number, twice=False)
    assert ended == code
    (saved,) = (acting / "out").glob("checkpoint-*")
    step = int(saved.name.partition("-")[2])
    assert 3 <= step < 200
    again = "--save_steps=500 --num-train-epochs 50 --nproc 2 --resume-from-checkpoint"
    assert err == (
        f"{number.name}: the run writes a checkpoint and leaves; once more ends it at once.\n"
        f"Stopped by {number.name} after step {step} of 200; out/checkpoint-{step} is written. "
        f"Go on with: drivetrain train run.toml {again}\n"
    )
    if number == signal.SIGINT:
        done = run(*again.split(), act=":")
        assert done.returncode == 0, done.stderr
        state = json.loads((acting / "out" / "trainer_state.json").read_text())
        assert state["global_step"] == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_second_signal_ends_all_at_once(acting: Path, number: signal.Signals) -> None:
    code, err = told(number, twice=True)
    assert code == 128 + number
    assert err.splitlines()[-1] == f"Stopped by {number.name}."
    assert not list((acting / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_a_signal_to_one_process_is_all_processes_own(acting: Path) -> None:
    done = run(act="SIGUSR1:1")
    assert done.returncode == 75
    assert re.fullmatch(
        r"Stopped by SIGUSR1 after step (\d) of 8; out/checkpoint-\1 is written. "
        "Go on with: drivetrain train run.toml --nproc 2 --resume-from-checkpoint\n",
        done.stderr,
    )


def _children(process: int) -> list[int]:
    if not os.path.exists("/proc/self/task"):
        pytest.skip("children are found in /proc")
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
