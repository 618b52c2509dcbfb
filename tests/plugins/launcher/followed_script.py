"""Rank 1 fails, and takes its time to end. `followed_script.py SECONDS [SIGTERM]`.

SIGTERM comes to the others: to rank 0 while it waits for rank 1 to end, to rank 2 before it has said why it ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from typing import Any

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
    time.sleep(float(sys.argv[1]))


def say(*error: Any) -> None:
    """What drivetrain calls in its turn."""
    if rank == 2 and "SIGTERM" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    sys.__excepthook__(*error)


sys.excepthook = say
rank = current(TrainingArguments("out", use_cpu=True, ddp_timeout=110)).rank
dist.all_gather_object(pids, os.getpid())
if rank == 1:
    error = ValueError("my own fault")
    peers.failed(error)
    raise error
with peers.watched():
    dist.barrier()
