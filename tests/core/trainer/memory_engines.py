"""auto_find_batch_size under the engines, in one process: run by test_memory_ranks.py under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from test_memory_states import begun, run, same

ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": "full_shard"},
    "fsdp1": {"fsdp": "full_shard", "fsdp_version": 1},
    "zero1": {"deepspeed": {"zero_optimization": {"stage": 1}}},
    "zero3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
}

for name in sys.argv[2].split(","):
    found = run(Path(sys.argv[1], name), **ENGINES[name])
    assert found._train_batch_size == 4
    same(found, begun(Path(sys.argv[1], f"{name}-begun"), **ENGINES[name]))
    print(f"{name}: fine", flush=True)
