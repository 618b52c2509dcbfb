"""Whether every process has come to this point, asked where one of them may have failed."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

from torch.distributed import distributed_c10d

PATIENCE = 5.0
"""Seconds. Processes that fail in the same way arrive within a fraction of one."""
_PAUSE = 0.02
_TOGETHER, _APART = "together", "apart"  # what the first to know says for all
_meetings = itertools.count()


class Together:
    """A meeting of all processes that has a bound, unlike a barrier: over the store, and not by a collective.

    Args:
        world_size: how many processes there are.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._key = f"drivetrain/deepspeed/close/{next(_meetings)}"

    def here(self) -> bool:
        """Whether a collective may be begun: this process does not fail, or all have come within the bound."""
        if self._world_size == 1 or sys.exc_info()[0] is None:
            return True
        until = time.monotonic() + PATIENCE
        try:
            store: Any = distributed_c10d._get_default_store()
            come = store.add(self._key, 1)
            while come < self._world_size and time.monotonic() < until:
                time.sleep(_PAUSE)
                come = store.add(self._key, 0)
            # Whoever comes after somebody has given up finds all counted, and must not wait for who is gone.
            verdict = _TOGETHER if come >= self._world_size else _APART
            return bool(store.compare_set(f"{self._key}/verdict", "", verdict) == _TOGETHER.encode())
        except Exception:
            return False  # the process that held the store is gone
