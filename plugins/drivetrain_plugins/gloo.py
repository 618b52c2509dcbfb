"""The threads of gloo's groups, which outlive a group for as long as anything refers to it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch.distributed as dist

# Seconds that a thread may take to come to rest on a busy machine.
PATIENCE = 5.0
_RUN_LOOP = "gloo_runloop"


def settle() -> None:
    """Waits until they rest, at most `PATIENCE` seconds; whoever ends a process group calls it.

    Such a thread lets go of a collective's tensors after all others have gone on, and needs the interpreter's lock for
    that. Where the machine is busy that may be so late that the interpreter is at its end: CPython then ends the thread
    in the midst of C++, and that aborts the process.
    """
    if not dist.is_gloo_available():
        return
    end, rested = time.monotonic() + PATIENCE, 0
    while rested < 2 and time.monotonic() < end:
        rested = 0 if _at_work() else rested + 1
        time.sleep(0.001)  # the lock is free meanwhile


def _at_work() -> bool:
    """Whether one of them is not asleep; not where the system does not tell."""
    for stat in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = stat.read_text().rpartition(")")
            if _RUN_LOOP in name and not rest.startswith(" S"):
                return True
    return False
