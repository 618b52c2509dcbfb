"""Kills saves at numbered points and at random moments, and looks at what is left. Run by test_kill.py.

Each save runs in a forked child. A point is an event of Python's audit hook (a file opened, a folder made, a
name changed, something removed) below the output folder, or a line of the checkpoint package.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

from support.saves import new_and_rotate, replace, save

import drivetrain.checkpoint as checkpoint
from drivetrain.checkpoint import (
    checkpoints,
    last_checkpoint,
    load_checkpoint,
    rotate,
    sweep,
    validate,
)

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
PACKAGE = os.path.dirname(checkpoint.__file__)


def in_child(action: Callable[[], None]) -> int:
    """Runs the action in a fork and returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return 0


def at_point(action: Callable[[str], None], output: str, point: int, lines: bool) -> None:
    count = 0

    def reached() -> None:
        nonlocal count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(frame: object, event: str, _: object) -> object:
        if not frame.f_code.co_filename.startswith(PACKAGE):  # type: ignore[attr-defined]
            return None
        if event == "line":
            reached()
        return trace

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS:
            reached()

    if lines:
        sys.settrace(trace)  # type: ignore[arg-type]
    else:
        sys.addaudithook(audit)
    action(output)


def check(output: str, marks: dict[int, set[float]], what: str) -> None:
    found = last_checkpoint(output)
    assert found is not None, f"{what}: nothing is left of {os.listdir(output)}"
    for _, folder in checkpoints(output):
        assert validate(folder) is None, f"{what}: half of {folder} is left"
    contents = load_checkpoint(found)
    assert contents.step in marks, f"{what}: step {contents.step}"
    mark = contents.extra["mark"]
    assert mark in marks[contents.step], f"{what}: {mark}"
    assert contents.train_state is not None
    for tensor in (
        *contents.train_state.weights.values(),
        contents.train_state.optimizer["weight"]["exp_avg"],
    ):
        assert bool((tensor == mark).all()), what
    sweep(output)
    assert not [name for name in os.listdir(output) if name.startswith(".")], what
    again = last_checkpoint(output)
    assert again == found, what
    save(output, 4, 4.0)
    assert last_checkpoint(output) == os.path.join(output, "checkpoint-4"), what


def numbered(root: str, lines: bool, stride: int) -> int:
    kills = 0
    for action, marks in ((new_and_rotate, {2: {2.0}, 3: {3.0}}), (replace, {2: {2.0, 20.0}})):
        point = 1
        while True:
            output = tempfile.mkdtemp(dir=root)
            save(output, 1, 1.0)
            save(output, 2, 2.0)
            ended = in_child(lambda: at_point(action, output, point, lines))  # noqa: B023
            check(output, marks, f"{action.__name__}, point {point}, lines {lines}")
            shutil.rmtree(output)
            if ended == 0:
                break
            assert ended == signal.SIGKILL
            kills += 1
            point += stride
    return kills


def at_random(root: str, kills: int) -> int:
    output = tempfile.mkdtemp(dir=root)
    save(output, 1, 1.0)
    draw = random.Random(0)
    for number in range(kills):
        child = os.fork()
        if child == 0:
            for step in range(2, 2000):
                save(output, step, float(step), size=300_000)
                rotate(output, 2)
        time.sleep(0.05 + 0.1 * draw.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = last_checkpoint(output)
        assert found is not None, number
        contents = load_checkpoint(found)
        assert contents.train_state is not None
        assert bool((contents.train_state.weights["weight"] == contents.extra["mark"]).all())
    return kills


def main() -> None:
    import logging

    logging.getLogger("drivetrain").setLevel(logging.ERROR)
    root = sys.argv[1]
    print("events", numbered(root, lines=False, stride=int(sys.argv[2])))
    print("lines", numbered(root, lines=True, stride=int(sys.argv[3])))
    print("random", at_random(root, int(sys.argv[4])))


if __name__ == "__main__":
    main()
