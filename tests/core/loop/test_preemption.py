"""Told to leave by a signal: a checkpoint of the step under way, a documented end, and a resume as if nothing had been."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.by_hand import environment
from support.toy import history, trainer, weights_equal

from drivetrain import Trainer, TrainerCallback, hookimpl
from drivetrain.errors import CheckpointError, Preempted
from drivetrain.preemption import resumed_by

# 26 batches an epoch, 13 updates; the last epoch ends with a short batch.
SETTINGS: dict[str, Any] = {
    "dropout": 0.2,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "logging_steps": 3,
    "save_steps": 4,
    "evaluation_strategy": "epoch",
    "per_device_eval_batch_size": 64,
}


class Signal(TrainerCallback):
    """Sends this process a signal at an event of a step."""

    def __init__(self, event: str, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number
        setattr(self, event, self.send)

    def send(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            os.kill(os.getpid(), self.number)


class Told:
    """What a plugin is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.error: BaseException | None = None

    @hookimpl
    def on_save(self, checkpoint: str) -> None:
        self.events.append(f"saved {Path(checkpoint).name}")

    @hookimpl
    def on_epoch_end(self) -> None:
        self.events.append("epoch end")

    @hookimpl
    def on_train_end(self) -> None:
        self.events.append("train end")

    @hookimpl
    def on_exception(self, error: BaseException) -> None:
        self.error = error


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    made = trainer(tmp_path_factory.mktemp("whole"), **SETTINGS)
    made.train()
    return made


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    # As they are in a fresh process: a shell's job in the background ignores SIGINT, and torch's launcher, which other
    # tests call in this process, leaves handlers behind.
    fresh = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    found = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    left = {number: signal.signal(number, handler) for number, handler in found.items()}
    assert left == fresh


def assert_resumes(folder: Path, whole: Trainer, **more: Any) -> None:
    resumed = trainer(folder, **SETTINGS | more)
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(whole)
    assert weights_equal(resumed.model, whole.model)


@pytest.mark.parametrize("save_async", [False, True])
@pytest.mark.parametrize(
    ("event", "step", "number", "saved"),
    [
        ("on_substep_end", 5, signal.SIGTERM, 6),  # in the middle of an accumulation
        ("on_step_end", 8, signal.SIGUSR1, 8),  # where a checkpoint is due anyway
        ("on_step_end", 13, signal.SIGINT, 13),  # the last step of an epoch
        ("on_evaluate", 13, signal.SIGTERM, 14),
        ("on_step_end", 26, signal.SIGTERM, 26),  # the last step of all
        ("on_evaluate", 26, signal.SIGTERM, 26),  # after it
    ],
)
def test_a_run_that_is_told_to_leave_goes_on(
    tmp_path: Path,
    whole: Trainer,
    capfd: pytest.CaptureFixture[str],
    event: str,
    step: int,
    number: signal.Signals,
    saved: int,
    save_async: bool,
) -> None:
    told = Told()
    leaving = trainer(
        tmp_path, callbacks=[Signal(event, step, number)], plugins=[told], save_async=save_async, **SETTINGS
    )
    kind = KeyboardInterrupt if number == signal.SIGINT else Preempted
    with pytest.raises(kind) as caught:
        leaving.train()
    assert str(caught.value) == (
        f"Stopped by {number.name} after step {saved} of 26; {tmp_path}/checkpoint-{saved} is written. "
        "To go on, start it again with trainer.train(resume_from_checkpoint=True)."
    )
    if isinstance(caught.value, Preempted):
        assert caught.value.code == 75
    assert capfd.readouterr().err.splitlines()[-2:] == [
        f"{number.name}: the run writes a checkpoint and leaves; once more ends it at once.",
        str(caught.value),
    ]
    assert told.error is caught.value
    assert "train end" not in told.events
    assert told.events.count("epoch end") == (step - (event == "on_step_end")) // 13
    assert told.events.count(f"saved checkpoint-{saved}") == 1
    assert_resumes(tmp_path, whole)


def test_the_command_that_goes_on_shows_no_token(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = "drivetrain train run.toml --hub-token hf_abcdefghijklmnopqrst --resume-from-checkpoint"
    with resumed_by(command), pytest.raises(Preempted):
        trainer(tmp_path, callbacks=[Signal("on_step_end", 1)], max_steps=2).train()
    said = capfd.readouterr().err
    assert "Go on with: drivetrain train run.toml --hub-token <token> --resume-from-checkpoint" in said


class Refuses(TrainerCallback):
    """Clears the flag of each checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = False


class ServesItself(Trainer):
    """As subclasses do that were written for another trainer: saves nothing."""

    def _maybe_log_save_evaluate(self, *args: Any) -> None:
        self.control.should_save = False
        super()._maybe_log_save_evaluate(*args)


@pytest.mark.parametrize("more", [{"callbacks": [Refuses()]}, {"cls": ServesItself}])
def test_nobody_else_decides_whether_it_is_written(
    tmp_path: Path, whole: Trainer, more: dict[str, Any]
) -> None:
    callbacks = [*more.pop("callbacks", ()), Signal("on_step_end", 13)]
    with pytest.raises(Preempted):
        trainer(tmp_path, callbacks=callbacks, **more, **SETTINGS).train()
    assert_resumes(tmp_path, whole)


class Full(Trainer):
    """The disk is full at the sixth step."""

    def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:
        if "checkpoint-6" in str(output_dir):
            raise OSError(28, "No space left on device")
        super().save_model(output_dir, _internal_call)


@pytest.mark.parametrize("save_async", [False, True])
@pytest.mark.parametrize("on_save_error", ["stop", "warn"])
def test_a_checkpoint_that_cannot_be_written_is_no_good_end(
    tmp_path: Path, on_save_error: str, save_async: bool
) -> None:
    """Code 75 says that nothing of the run is lost; so it is not given here, whatever a failed save is elsewhere."""
    made = trainer(
        tmp_path,
        cls=Full,
        callbacks=[Signal("on_step_end", 6)],
        on_save_error=on_save_error,
        save_async=save_async,
        **SETTINGS,
    )
    with pytest.raises(CheckpointError, match="checkpoint-6 was not written"):
        made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_where_nothing_is_saved_no_signal_is_heard(tmp_path: Path) -> None:
    heard = []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            heard.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])

    trainer(tmp_path, callbacks=[Look], save_strategy="no", max_steps=1).train()
    assert heard == [[signal.SIG_DFL, signal.default_int_handler]]


def test_a_handler_that_stands_is_left_alone(tmp_path: Path) -> None:
    """The user's, one that ignores, and one of faulthandler's, of which Python itself does not know."""
    heard: list[int] = []
    with (tmp_path / "stacks").open("w+") as stacks:
        faulthandler.register(signal.SIGUSR1, stacks)
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            made = trainer(
                tmp_path,
                callbacks=[
                    Signal("on_step_end", 1, signal.SIGTERM),
                    Signal("on_step_end", 1, signal.SIGUSR1),
                    Signal("on_step_end", 2, signal.SIGINT),
                ],
                max_steps=3,
            )
            assert made.train().global_step == 3
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        assert heard == [signal.SIGTERM]
        stacks.seek(0)
        assert "train_loop" in stacks.read()


def test_outside_of_the_main_thread_it_trains_as_ever(tmp_path: Path) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(trainer(tmp_path, max_steps=2).train().global_step))
    thread.start()
    thread.join()
    assert done == [2]


SCRIPT = """
import os, signal, sys, time
from support.toy import rows, trainer
from drivetrain import TrainerCallback

settings, act = eval(sys.argv[2]), sys.argv[3]

class Act(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and act == "pause":
            print("HERE", flush=True)
            time.sleep(1)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 5 or act == "pause":
            return
        print("HERE", flush=True)
        if act == "wait":
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.01)
        elif act == "fork":
            ready, begun = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(begun, b".")
                time.sleep(60)
                os._exit(1)
            os.read(ready, 1)
            os.kill(child, signal.SIGTERM)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        else:
            os.kill(os.getpid(), getattr(signal, act))

if __name__ == "__main__":
    made = trainer(sys.argv[1], callbacks=[Act], **settings)
    made.train()
    print("ENDED", made.state.global_step)
"""


def start(
    folder: Path, act: str, variables: dict[str, object] | None = None, **more: Any
) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(folder / "script.py"), str(folder), str(SETTINGS | more), act],
        env=environment(**variables or {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def await_here(running: subprocess.Popen[str]) -> None:
    assert running.stdout is not None
    while "HERE" not in (line := running.stdout.readline()):
        assert line or running.poll() is None


@pytest.mark.parametrize(("act", "code"), [("SIGUSR1", 75), ("SIGINT", -signal.SIGINT)])
def test_how_a_script_ends(tmp_path: Path, act: str, code: int) -> None:
    running = start(tmp_path, act)
    out, err = running.communicate(timeout=120)
    assert running.returncode == code, err
    assert "ENDED" not in out
    assert f"Stopped by {act} after step 5 of 26; {tmp_path}/checkpoint-5 is written." in err


def test_data_workers_are_not_told(tmp_path: Path, whole: Trainer) -> None:
    """torchrun signals a process's whole group, and so does a terminal: workers that ended would end the run."""
    running = start(tmp_path, "pause", dataloader_num_workers=2)
    await_here(running)
    os.killpg(running.pid, signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 75, err
    assert_resumes(tmp_path, whole, dataloader_num_workers=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    running = start(tmp_path, "wait")
    await_here(running)
    for pause in (0.1, 3.0):  # the second comes so soon that it is the first one once more
        running.send_signal(number)
        time.sleep(pause)
    assert running.poll() is None
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == -number, err
    assert f"{number.name}: the run writes a checkpoint and leaves; once more ends it at once." in err
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_fork_of_the_run_ends_as_ever(tmp_path: Path) -> None:
    running = start(tmp_path, "fork")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "ENDED 26" in out


STAND_IN = """#!/bin/sh
echo "$@" >> {told}
{end}
"""


def stand_in_for_scontrol(folder: Path, end: str = "exit 0") -> tuple[dict[str, object], Path]:
    """There is no SLURM here: a program of that name on the PATH, and the file in which it notes what it is told."""
    told, program = folder / "told", folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(told=told, end=end))
    program.chmod(0o755)
    told.touch()
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": 77}, told


def test_a_job_of_slurm_goes_back_into_the_queue(tmp_path: Path, whole: Trainer) -> None:
    """Started with SLURM's own variables, and after that as SLURM starts a requeued job: nobody says where to resume."""
    variables, told = stand_in_for_scontrol(tmp_path)
    running = start(tmp_path, "SIGUSR1", variables, requeue=True)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 75, err
    assert told.read_text() == "requeue 77\n"
    assert "Job 77 is in the queue again, and will go on from this checkpoint." in err
    running = start(tmp_path, "pause", {**variables, "SLURM_RESTART_COUNT": 1}, requeue=True)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert f"the run goes on from {tmp_path}/checkpoint-5" in err
    assert "ENDED 26" in out
    last = trainer(tmp_path, **SETTINGS)
    last.train(resume_from_checkpoint=str(tmp_path / "checkpoint-24"))
    assert history(last) == history(whole)
    assert weights_equal(last.model, whole.model)
    assert told.read_text() == "requeue 77\n"


@pytest.mark.parametrize(
    ("number", "array", "end", "told", "sentence"),
    [
        (signal.SIGTERM, {}, "exit 0", "", ""),  # scancel's: who cancels a job does not want it back
        (
            signal.SIGUSR1,
            {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"},
            "exit 0",
            "requeue 70_7\n",
            "Job 70_7 is in the queue again, and will go on from this checkpoint.",
        ),
        (
            signal.SIGUSR1,
            {},
            "echo Access denied >&2; exit 1",
            "requeue 77\n",
            "`scontrol requeue 77` failed: Access denied. The checkpoint stands: submit the job again, with "
            "resume_from_checkpoint=True.",
        ),
        (
            signal.SIGUSR1,
            {"PATH": "/nowhere"},
            "",
            "",
            "failed: there is no scontrol on the PATH. The checkpoint",
        ),
    ],
)
def test_which_job_goes_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    array: dict[str, str],
    end: str,
    told: str,
    sentence: str,
) -> None:
    variables, noted = stand_in_for_scontrol(tmp_path, end)
    for name, value in (variables | array).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(Preempted):
        trainer(tmp_path, callbacks=[Signal("on_step_end", 2, number)], requeue=True, max_steps=3).train()
    assert noted.read_text() == told
    assert sentence in caplog.text
    assert (tmp_path / "checkpoint-2").is_dir()


def test_outside_of_slurm_there_is_no_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, requeue=True, max_steps=1).train()
    assert "requeue=True has no effect: this is no job of SLURM." in caplog.text
