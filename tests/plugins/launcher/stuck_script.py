"""Rank 2 stands in collectives for which rank 0 comes late or never. `stuck_script.py lost|own`.

lost: rank 1 is killed meanwhile. own: rank 2 fails by itself, with a collective under way.
"""

from __future__ import annotations

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
rank = current(TrainingArguments("out", use_cpu=True, ddp_timeout=90)).rank
pair = dist.new_group([0, 2])
writers = dist.new_group([0, 2], group_desc=background.GROUP)
# What refers to a group, and would wait for its threads, when the interpreter lets go of it.
wrapped = DistributedDataParallel(torch.nn.Linear(2, 2))
dist.barrier()


def write() -> None:
    """What a thread does that writes a checkpoint while the main thread trains."""
    total = torch.ones(1)
    dist.all_reduce(total, group=writers)
    print(f"the writers' sum is {total.item():g}", flush=True)


if rank == 2 and sys.argv[1] == "own":
    work = dist.all_reduce(torch.ones(1), async_op=True)
    raise ValueError("my own fault")
if rank == 2:
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
time.sleep(100)
