"""Lets the calls of a save fail, each in turn, and looks at what is left. Run by test_failing.py under the shim.

failing.py ROOT checkpoint STRIDE     a save with a rotation, and one that replaces: every call, every error
failing.py ROOT run STRIDE            a training run whose calls fail, with on_save_error="warn"
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable

from support.saves import new_and_rotate, replace, save

from drivetrain.checkpoint import (
    checkpoints,
    last_checkpoint,
    load_checkpoint,
    sweep,
    validate,
)
from drivetrain.errors import CheckpointError
from durability.faults import Call, Control

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)


class Heard(logging.Handler):
    """What was logged at warning or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def mark_of(output: str, step: int) -> float | None:
    folder = os.path.join(output, f"checkpoint-{step}")
    if not os.path.lexists(folder):
        return None
    assert validate(folder) is None, f"half of {folder} is left: {validate(folder)}"
    contents = load_checkpoint(folder)
    assert contents.train_state is not None
    mark = float(contents.extra["mark"])
    assert bool((contents.train_state.weights["weight"] == mark).all())
    return mark


def check(
    output: str, action: Callable[[str], None], refused: BaseException | None, warned: list[str]
) -> None:
    hidden = [name for name in os.listdir(output) if name.startswith(".")]
    found = {step: mark_of(output, step) for step, _ in checkpoints(output)}
    assert found[1] == 1.0, "the best is gone"
    if refused is not None:
        assert isinstance(refused, CheckpointError), repr(refused)
        step = 3 if action is new_and_rotate else 2
        text = str(refused)
        assert text.startswith(f"Checkpoint checkpoint-{step} was not written"), text
        assert "\n" not in text, text
        assert "Errno" not in text, text
        assert found == {1: 1.0, 2: 2.0}, f"{text} left {found}"
        assert not hidden, f"{text} left {hidden}"
    elif action is new_and_rotate:
        # What could not be deleted is said and stays; under its own name it is still whole.
        assert found.pop(3) == 3.0
        assert found.get(2, 2.0) == 2.0
        assert warned or (2 not in found and not hidden), f"{found}, {hidden}, and nothing was said"
    else:
        assert found == {1: 1.0, 2: 20.0}, found
        assert warned or not hidden, f"{hidden} is left, and nothing was said"
    # The next save works, and so does the next start.
    save(output, 4, 4.0)
    assert mark_of(output, 4) == 4.0
    sweep(output)
    assert not [name for name in os.listdir(output) if name.startswith(".")]
    assert last_checkpoint(output) == os.path.join(output, "checkpoint-4")


def at_each_call(root: str, control: Control, stride: int) -> dict[str, int]:
    logger = logging.getLogger("drivetrain")
    heard = Heard()
    logger.addHandler(heard)
    logger.propagate = False
    prepared = os.path.join(root, "prepared")
    save(prepared, 1, 1.0)
    save(prepared, 2, 2.0)
    counts = {"calls": 0, "refused": 0, "went on": 0}
    for action in (new_and_rotate, replace):
        output = os.path.join(root, "recorded", "out")
        shutil.copytree(prepared, output)
        control.arm(os.path.dirname(output))
        action(output)
        calls = control.calls()
        shutil.rmtree(os.path.dirname(output))
        for call in calls[::stride]:
            for number in ERRORS:
                output = os.path.join(root, "tried", "out")
                shutil.copytree(prepared, output)
                heard.lines.clear()
                control.arm(os.path.dirname(output), "fail", call.number, number)
                refused: BaseException | None = None
                try:
                    action(output)
                except BaseException as error:
                    refused = error
                control.arm("/nowhere")
                what = f"{action.__name__}, {errno.errorcode[number]} at {said(call)}"
                try:
                    check(output, action, refused, heard.lines)
                    assert refused is not None or not must_fail(call, output), "the save went on"
                except AssertionError as error:
                    raise AssertionError(f"{what}: {error}") from error
                counts["calls"] += 1
                counts["refused" if refused is not None else "went on"] += 1
                shutil.rmtree(os.path.dirname(output))
    return counts


def must_fail(call: Call, output: str) -> bool:
    """Whether a save must not go on after this failure: what follows the new checkpoint's rename may fail."""
    if call.name == "mkdir":
        return call.path != output  # that one is there already
    return call.name in ("fsync", "write") or (call.name == "rename" and ".del-" not in call.second)


def said(call: Call) -> str:
    return f"{call.number} {call.name} {call.path} {call.second}"


def main() -> None:
    root, what, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "checkpoint":
        control = Control(os.path.join(root, "control"))
        control.arm("/nowhere")
        control.attach()
        print(json.dumps(at_each_call(root, control, stride)))
    else:
        from durability.failing_runs import failing_runs

        print(json.dumps(failing_runs(root, stride)))


if __name__ == "__main__":
    main()
