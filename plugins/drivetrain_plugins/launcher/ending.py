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
        _end_in_good_order(news)
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
        # A launcher takes the first that ends for the one at fault, and may cut it off before it has said why.
        _end_in_good_order(news)
        news.wait_for_failed(FAREWELL)
    news.close(FAREWELL if together else 0.0, connected=not together)
    gloo.settle()
    del store


def _end_in_good_order(news: News) -> None:
    """Keeps the first SIGTERM from now on from cutting off the end, and what is said there of the error.

    A launcher ends the others by it as soon as it sees one end. By a second one the process ends at once.
    """

    def hear(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        news.in_haste = True

    here = threading.current_thread() is threading.main_thread()
    if here and not news.in_haste and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, hear)
