"""The end of a process: it waits for the others, not for ever, and for nobody after a failure."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch.distributed as dist

from drivetrain import peers
from drivetrain_plugins import gloo
from drivetrain_plugins.launcher.meeting import ranks
from drivetrain_plugins.launcher.news import News

logger = logging.getLogger("drivetrain")

# Waiting for the others at the end has a bound: a rank that died must not hold up the rest.
FAREWELL = 30.0
# NCCL may wait on a dead process of its own machine until the timeout, and then aborts.
HUNG = 60.0
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
    else:
        news.on_failure(gloo.break_off_later)
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
        if not together:
            gloo.break_off(gloo.groups())
        gloo.settle()
        # An object of the group's that is left to the interpreter's end may abort the process. NCCL's own end
        # waits for the others; after a failure it is broken off.
        if together or dist.get_backend() != "nccl":
            dist.destroy_process_group()
        else:
            dist.distributed_c10d._abort_process_group()
    if not together:
        _let_go_first(news)
    news.close(FAREWELL if together else 0.0, connected=not together)
    gloo.settle()
    del store


def _let_go_first(news: News) -> None:
    """Lets the process end first that this one follows.

    A launcher blames the one that it sees end first, and ends all others by SIGTERM, who may not have said yet what
    has happened. To this one SIGTERM says that its time has come, and it ends as it would have; by a second one at
    once.
    """

    def hear(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        news.stop_waiting()

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, hear)
    news.wait_for_failed(FAREWELL)
