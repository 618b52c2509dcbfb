"""The other processes of a run: telling them that this one has failed, and saying in one sentence that they have.

A process that dies closes its connections, and every other one then gets an error of the backend's from the
collective that it is in. `lost` makes a `ProcessError` of it, which names the rank that failed first, where that
rank had the time to say so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drivetrain.errors import DrivetrainError, OutOfMemoryElsewhere, ProcessError, checkpoint_of

# What marks an error as the backend's own, and not somebody's who has a socket too.
_MARKS = (
    "/gloo/",
    "gloo::",
    "pair closure",
    "NCCL",
    "nccl",
    "ProcessGroup",
    "torch/csrc/distributed",
    "monitoredBarrier",
)
_LATE = ("timed out", "timeout", "time out")

_tell: Callable[[str], None] | None = None
_ask: Callable[[], str | None] | None = None
_left: Callable[[], tuple[int, str] | None] | None = None
_failed = False


def connect(
    tell: Callable[[str], None] | None,
    ask: Callable[[], str | None] | None,
    left: Callable[[], tuple[int, str] | None] | None = None,
) -> None:
    """Lets a launcher carry the news.

    Args:
        tell: tells the others why this process fails.
        ask: a sentence that says which rank has failed or ended, and why; None where it is not known.
        left: the rank that has left the process group, to meet the others in a new one, and the error that it did so
            by, empty where that is a want of memory; None where none has.
    """
    global _tell, _ask, _left
    _tell, _ask, _left = tell, ask, left


def failed(error: BaseException) -> None:
    """Notes that an error ends this process, and tells the others; what is told is no news to them twice.

    A process that was told to leave has not failed: all leave together, and wait for each other.
    """
    global _failed
    if checkpoint_of(error) is not None:
        return
    first, _failed = not _failed, True
    if first and _tell is not None and not isinstance(error, ProcessError):
        _tell(told_of(error))


def told_of(error: BaseException) -> str:
    """What the others are told of an error."""
    text = str(error) if isinstance(error, DrivetrainError) else f"{type(error).__name__}: {error}"
    return text.strip()


def has_left() -> bool:
    """Whether another process has left the process group of now, and waits to be met in a new one."""
    return _left is not None and _left() is not None


def has_failed() -> bool:
    """Whether an error ends this process, so that nobody should be waited for."""
    return _failed


def lost(error: BaseException) -> ProcessError | None:
    """What an error of a backend's says of the other processes; None where it is no such error.

    One that ends the interpreter (`sys.exit`, Ctrl-C) is told to the others: no hook sees it later.
    """
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        failed(error)
        return None
    if not _is_backends(error):
        return None
    known = _ask() if _ask is not None else None
    if known is None and _left is not None and (found := _left()) is not None:
        rank, reason = found
        if not reason:
            return OutOfMemoryElsewhere(f"Another process of this run is out of memory: rank {rank}.")
        known = f"Another process of this run has failed: rank {rank} by {reason}"
    if known is not None:
        return ProcessError(known)
    if any(word in str(error).lower() for word in _LATE):
        return ProcessError(
            "Another process of this run does not answer within ddp_timeout: see what the others printed, and raise "
            "ddp_timeout where one of them only needs longer."
        )
    return ProcessError("Another process of this run has ended: see what it printed before.")


@contextmanager
def watched() -> Iterator[None]:
    """Raises `ProcessError` in the place of a backend's error."""
    try:
        yield
    except Exception as error:
        if (found := lost(error)) is not None:
            raise found from error
        raise


def _is_backends(error: BaseException) -> bool:
    distributed = sys.modules.get("torch.distributed")
    if (
        distributed is None
        or not distributed.is_available()
        or (_ask is None and not distributed.is_initialized())
    ):
        return False
    if isinstance(error, distributed.DistError):
        return True
    return type(error) is RuntimeError and any(mark in str(error) for mark in _MARKS)
