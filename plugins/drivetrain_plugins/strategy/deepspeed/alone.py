"""One process by itself: DeepSpeed wants a process group all the same, and one of five variables."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from drivetrain_plugins.strategy.deepspeed import vendor

_LOCAL_RANK = "LOCAL_RANK"


class Alone:
    """A process group of one, from `begin` to `end`; nothing where there is a group already.

    The group needs no port: its store is in this process's memory.

    Args:
        deepspeed: the vendor's module.
    """

    def __init__(self, deepspeed: Any) -> None:
        self._deepspeed = deepspeed
        self._made = False
        self._set_rank = False

    def begin(self, device: torch.device, timeout: int) -> None:
        """Makes the group.

        Args:
            device: chooses the backend.
            timeout: seconds that a collective call may take.
        """
        if _LOCAL_RANK not in os.environ:  # DeepSpeed reads its device from it
            os.environ[_LOCAL_RANK] = str(device.index or 0)
            self._set_rank = True
        if not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
            store: Any = dist.HashStore()  # type: ignore[attr-defined]  # documented, though not listed
            dist.init_process_group(
                backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=timeout)
            )
            self._made = True

    def end(self) -> None:
        """Ends the group that `begin` made, and puts the environment back."""
        if self._made:
            self._made = False
            vendor.disconnect(self._deepspeed)
        if self._set_rank:
            self._set_rank = False
            os.environ.pop(_LOCAL_RANK, None)
