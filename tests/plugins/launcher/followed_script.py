"""Rank 1 fails, and takes its time to end. `followed_script.py SECONDS [SIGTERM]`: SIGTERM is what the others are told."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time

import torch.distributed as dist

from drivetrain import TrainingArguments, peers
from drivetrain.processes import current

pids = [0, 0, 0]


@atexit.register  # what comes first is called last
def end() -> None:
    """After all that drivetrain does at the end."""
    if rank != 1:
        print("the end", flush=True)
        return
    if "SIGTERM" in sys.argv:
        time.sleep(3)
        os.kill(pids[0], signal.SIGTERM)
        os.kill(pids[2], signal.SIGTERM)
    time.sleep(float(sys.argv[1]))


rank = current(TrainingArguments("out", use_cpu=True, ddp_timeout=110)).rank
dist.all_gather_object(pids, os.getpid())
if rank == 1:
    error = ValueError("my own fault")
    peers.failed(error)
    raise error
with peers.watched():
    dist.barrier()
