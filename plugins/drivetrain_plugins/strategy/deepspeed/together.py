"""Whether every process has come to this point, asked where one of them may have failed."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(seconds=5)


class Together:
    """A bounded meeting of all processes.

    Args:
        several: whether there is more than one.
    """

    def __init__(self, several: bool) -> None:
        self._group: Any = None
        self._several = several
        if several and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # the only backend whose barrier has a bound

    def here(self) -> bool:
        """Whether a collective may be begun: nobody fails, or all have come within the bound."""
        if not self._several or sys.exc_info()[0] is None:
            return True
        try:
            dist.monitored_barrier(group=self._group, timeout=PATIENCE)
        except Exception:
            return False
        return True
