"""Rank 1 leaves the group, while rank 2 waits in it for rank 0. All meet in a new one. `renewal_script.py FOLDER`.

Then it leaves again and again, and what a group needs is given back each time.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from drivetrain import TrainingArguments
from drivetrain.errors import OutOfMemoryElsewhere
from drivetrain.peers import watched
from drivetrain.processes import current

free = Path(sys.argv[1], "free")
found = current(TrainingArguments("out", use_cpu=True, ddp_timeout=90))


def wait_for_free() -> None:
    """Busy elsewhere until rank 2 no longer waits, or for so long that it has been in vain."""
    end = time.monotonic() + 60
    while not free.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert free.exists()


def leave(first: bool) -> None:
    """Rank 1 finds no memory."""
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    assert found.renew is not None
    try:
        model(torch.ones(1, 2)).sum().backward()
        if found.rank == 0 and first:
            wait_for_free()
        if found.rank == 1:
            raise MemoryError
        with watched():
            dist.recv(torch.empty(1), src=0) if found.rank == 2 and first else dist.barrier()
    except (MemoryError, OutOfMemoryElsewhere) as error:
        ours = isinstance(error, MemoryError)
    del model
    gc.collect()
    if found.rank == 2:
        free.touch()
    found.renew("" if ours else None)


def threads() -> int:
    """Of this process, without Python's; one that has ended may still be listed for a moment."""
    counts = []
    for _ in range(20):
        counts.append(len(os.listdir("/proc/self/task")) - threading.active_count())
        time.sleep(0.02)
    return min(counts)


before = threads()
leave(first=True)
for _ in range(3):
    leave(first=False)
total = torch.tensor([found.rank + 1.0])
dist.all_reduce(total)
sys.stdout.write(f"{total.item():g}, {threads() - before} threads more\n")
