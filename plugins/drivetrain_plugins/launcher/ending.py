"""The end of a process: it waits for the others, not for ever, and for nobody after a failure."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from drivetrain import peers
from drivetrain_plugins.launcher.meeting import ranks
from drivetrain_plugins.launcher.news import News

logger = logging.getLogger("drivetrain")

# Waiting for the others at the end has a bound: a rank that died must not hold up the rest.
FAREWELL = 30.0
# NCCL may wait on a dead process of its own machine until the timeout, and then aborts.
HUNG = 60.0
# Seconds that a thread of gloo's may take to come to rest on a busy machine.
SETTLED = 5.0
_RUN_LOOP = "gloo_runloop"
_LOST = 3  # the exit code of a process that lost another, as the command line's


def end_at_exit(news: News, store: Any) -> None:
    """Whoever made the process group ends it.

    Args:
        news: tells of failures until then.
        store: the group's; rank 0's copy is the store itself, and is kept until the others have gone.
    """
    peers.connect(news.tell, news.failure, news.left)
    if dist.get_backend() == "nccl":
        end_if_hung(news, HUNG)
    hook = sys.excepthook

    def note_failure(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        peers.failed(error)
        hook(kind, error, trace)

    sys.excepthook = note_failure
    atexit.register(_end, news, store, os.getpid())


def end_if_hung(news: News, seconds: float) -> None:
    """Ends this process when another one has failed, and this one has not come to its end by itself after that."""

    def give_up() -> None:
        print(f"ProcessError: {news.failure()}", file=sys.stderr, flush=True)
        os._exit(_LOST)

    def wait() -> None:
        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()

    news.on_failure(wait)


def _end(news: News, store: Any, process: int) -> None:
    if os.getpid() != process:
        return  # a fork of this process
    peers.connect(None, None)
    together = False
    if not peers.has_failed():
        missing = news.wait_for_all(FAREWELL)
        together = not missing
        if missing and news.rank == 0:
            logger.warning("The run ends without %s, which did not come to its end.", ranks(missing))
    if dist.is_initialized():
        # An object of the group's that is left to the interpreter's end may abort the process. NCCL's own end
        # waits for the others; after a failure it is broken off.
        if together or dist.get_backend() != "nccl":
            dist.destroy_process_group()
        else:
            dist.distributed_c10d._abort_process_group()
    news.close(FAREWELL if together else 0.0)
    _settle(SETTLED)
    del store


def _settle(seconds: float) -> None:
    """Waits until gloo's threads rest; whoever still holds a group's object keeps them alive after its end.

    Such a thread lets go of a collective's tensors after all others have gone on, and needs the interpreter's lock for
    that. Where the machine is busy that may be so late that the interpreter is at its end: CPython then ends the thread
    in the midst of C++, and that aborts the process.
    """
    if not dist.is_gloo_available():
        return
    end, rested = time.monotonic() + seconds, 0
    while rested < 2 and time.monotonic() < end:
        rested = 0 if _at_work() else rested + 1
        time.sleep(0.001)  # the lock is free meanwhile


def _at_work() -> bool:
    """Whether one of gloo's threads is not asleep; not where the system does not tell."""
    for stat in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = stat.read_text().rpartition(")")
            if _RUN_LOOP in name and not rest.startswith(" S"):
                return True
    return False
