"""Collectives that the others do not come to. `stuck_script.py lost|own|deaf`.

lost: rank 1 is killed, while rank 2 waits for rank 0. own: rank 0 fails by itself, with a collective under way. deaf: with
one that gloo does not let go of, which is made believe here: no connection is broken.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from drivetrain import TrainingArguments, background, peers
from drivetrain.processes import current
from drivetrain_plugins import gloo

LATE = gloo.OVERDUE + 4
held: list[DistributedDataParallel] = []


@atexit.register  # what comes first is called last
def let_go() -> None:
    """Of the last that refers to the group: it waits for the group's threads."""
    held.clear()
    gc.collect()


rank = current(TrainingArguments("out", use_cpu=True, ddp_timeout=110)).rank
pair = dist.new_group([0, 2])
writers = dist.new_group([0, 2], group_desc=background.GROUP)
held.append(DistributedDataParallel(torch.nn.Linear(2, 2)))
dist.barrier()


def write() -> None:
    """What a thread does that writes a checkpoint while the main thread trains."""
    total = torch.ones(1)
    dist.all_reduce(total, group=writers)
    print(f"the writers' sum is {total.item():g}", flush=True)


if sys.argv[1] == "deaf":
    gloo.itertools.product = lambda *parts: ()
if rank == 0 and sys.argv[1] != "lost":
    work = dist.all_reduce(torch.ones(1), async_op=True)
    raise ValueError("my own fault")
if rank == 2 and sys.argv[1] == "lost":
    thread = threading.Thread(target=write)
    thread.start()
    try:
        with peers.watched():
            dist.all_reduce(torch.ones(1), group=pair)
    finally:
        thread.join()
if rank == 1 and sys.argv[1] == "lost":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 0 and sys.argv[1] == "lost":
    time.sleep(LATE)
    write()
time.sleep(110)
