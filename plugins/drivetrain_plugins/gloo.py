"""Gloo's groups beside their collectives: breaking them off, and waiting until their threads rest."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# Before any group is made: the default arguments of its functions are the group that there is when it is imported, as
# DDP does, and that would be kept to the end of the interpreter.
import torch.distributed.nn.functional

from drivetrain import background

# Seconds that a thread may take to come to rest on a busy machine.
PATIENCE = 5.0
# How long the collectives of a group with a dead process may take to end.
OVERDUE = 5.0
_RUN_LOOP = "gloo_runloop"
# Groups that were broken off, and the references to one that nobody but this file refers to: the list's, that which
# outlives the list, and that of the call which counts them.
_kept: list[dist.ProcessGroup] = []
_OURS = 3


def groups() -> list[dist.ProcessGroup]:
    """The groups of gloo's that this process is in."""
    known = list(dist.distributed_c10d._world.pg_map.items())  # another thread may end one
    return [group for group, (backend, _) in known if "gloo" in backend]


def groups_in_training() -> list[dist.ProcessGroup]:
    """Those of the main threads: all but that in which threads meet that write a checkpoint."""
    return [group for group in groups() if group.group_desc != background.GROUP]


def break_off(broken: Iterable[dist.ProcessGroup]) -> None:
    """Ends every collective that is under way here in these groups by an error, and every later one.

    A group with a dead process does not do that by itself. A collective that fails gives its memory back while a living
    process still sends for it; gloo reads nothing more of that process then, not even that it has ended, and any other
    collective that hears from it waits until its timeout. Rarely one does so even after this.

    The groups are kept after that: whoever takes one apart waits for every collective, and may hold the interpreter's
    lock meanwhile, which the collective needs to end. `take_apart` does it where that is sure not to be so.
    """
    # Where GLOO_SOCKET_IFNAME names several interfaces a group has connections over each, chosen by the tag.
    tags = range(1, 2 + os.environ.get("GLOO_SOCKET_IFNAME", "").count(","))
    for group in broken:
        if group not in _kept:
            _kept.append(group)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))  # the interpreter empties the list at its end
        peers = [peer for peer in range(group.size()) if peer != group.rank()]
        for peer, tag in itertools.product(peers, tags):
            # A receive that nobody answers: gloo closes every connection of a group in which one has timed out.
            with contextlib.suppress(RuntimeError):
                group.recv([torch.empty(1)], peer, tag).wait(timedelta(milliseconds=1))


def break_off_later() -> None:
    """Breaks off what is in training now, in `OVERDUE` seconds: as a rule it ends by itself before that."""
    broken = weakref.WeakSet(groups_in_training())
    timer = threading.Timer(OVERDUE, break_off, [broken])
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # there is no memory for a thread
        break_off(broken)


def take_apart() -> None:
    """Gives back the memory and the threads of the groups that were broken off and that nobody else refers to.

    Waits for that at most `PATIENCE` seconds; a collective that does not end holds up nothing but a thread of its own.
    """
    alone = [_kept.pop(at) for at in reversed(range(len(_kept))) if sys.getrefcount(_kept[at]) == _OURS]
    if not alone:
        return

    def let_go() -> None:
        while alone:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(alone[-1]))
            alone.pop()  # torch gives up the lock while it waits here

    thread = threading.Thread(target=let_go, name="drivetrain-gloo", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there is no memory for a thread; nearly always every collective has ended
        let_go()
    else:
        thread.join(PATIENCE)


def settle() -> None:
    """Waits until gloo's threads rest, at most `PATIENCE` seconds.

    Such a thread lets go of a collective's tensors after all others have gone on, and needs the interpreter's lock for
    that. Before a group of several processes is ended: DDP's reducer, where it is the last to refer to the group, holds
    that lock while it waits for the thread, for ever. After any group is ended: where the machine is busy the thread
    may be so late that the interpreter is at its end; CPython then ends it in the midst of C++, and that aborts the
    process.
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
