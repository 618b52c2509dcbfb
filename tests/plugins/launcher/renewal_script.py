"""Rank 1 leaves the group, while rank 2 waits in it for rank 0. All meet in a new one. `renewal_script.py FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from drivetrain import TrainingArguments
from drivetrain.errors import OutOfMemoryElsewhere
from drivetrain.peers import watched
from drivetrain.processes import current

free = Path(sys.argv[1], "free")
found = current(TrainingArguments("out", use_cpu=True, ddp_timeout=90))
assert found.renew is not None
dist.barrier()
if found.rank == 0:  # busy elsewhere until rank 2 no longer waits, or for so long that it has been in vain
    end = time.monotonic() + 60
    while not free.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert free.exists()
try:
    if found.rank == 1:
        raise MemoryError
    with watched():
        dist.recv(torch.empty(1), src=0) if found.rank == 2 else dist.barrier()
except (MemoryError, OutOfMemoryElsewhere) as error:
    if found.rank == 2:
        free.touch()
    found.renew("" if isinstance(error, MemoryError) else None)
total = torch.tensor([found.rank + 1.0])
dist.all_reduce(total)
sys.stdout.write(f"{total.item():g}\n")
