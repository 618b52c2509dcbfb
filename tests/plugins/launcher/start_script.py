"""Makes the process group, says who is who, and computes a sum over all. `start_script.py JSON-of-arguments`."""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist

from drivetrain import TrainingArguments
from drivetrain.processes import current

args = TrainingArguments("out", use_cpu=True, **json.loads(sys.argv[1]))
found = current(args)
total = torch.tensor([found.rank + 1.0])
dist.all_reduce(total)
found.barrier()
told = {
    "rank": args.process_index,
    "size": args.world_size,
    "local_rank": args.local_rank,
    "local_size": found.local_world_size,
    "node": found.node,
    "attempt": found.attempt,
    "launch": found.launch,
    "sum": float(total),
    "for_libraries": {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
}
sys.stdout.write(
    json.dumps(told) + "\n"
)  # at once: print writes the line's end by itself, and the ranks share a pipe
