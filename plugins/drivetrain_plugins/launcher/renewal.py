"""A new process group in the midst of a run, when one process has failed in the old one.

The others stand in a collective that this process will never enter. It tells them beside the group that it leaves, and
breaks the group's connections, upon which their collectives end in an error. Each does the same in its turn, and when
all have left the old group they make the new one, as they made the first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # they are documented

from drivetrain import peers
from drivetrain.errors import ProcessError
from drivetrain_plugins import gloo
from drivetrain_plugins.launcher.meeting import ranks
from drivetrain_plugins.launcher.news import News

_AGAIN = 0.05  # seconds
# A collective that this process has finished, the others may be about to finish: they are given the time.
_GRACE = 1.0


class Renewal:
    """Leaves the process group of now and makes the next one; the same on every rank.

    Args:
        rank, size: of this process.
        backend: of the group.
        timeout: for the others to come, `ddp_timeout`; and that of the new group's collectives.
        device: what the group is bound to, if anything.
        store: where they meet; it outlives the groups.
        news: the connections beside the group.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        backend: str,
        timeout: timedelta,
        device: torch.device | None,
        store: Store,
        news: News,
    ) -> None:
        self.rank, self.size, self.backend, self.timeout = rank, size, backend, timeout
        self.device, self.store, self.news = device, store, news
        if backend == "nccl":
            news.on_left(_abort_here)
        else:
            news.on_left(gloo.break_off_later)

    def __call__(self, reason: str | None) -> None:
        """Leaves, and comes back with all the others.

        Args:
            reason: the error that this process leaves by, empty for want of memory; None where it follows another.

        Raises:
            ProcessError: another one has failed, or did not come within `ddp_timeout`.
        """
        if reason is not None:
            time.sleep(_GRACE)
            self.news.tell_left(reason)
        number = self.news.next_group()
        _break_connections(self.backend)
        self._wait_for_all(number)
        with peers.watched():
            dist.init_process_group(
                self.backend,
                store=PrefixStore(f"group{number}", self.store),
                rank=self.rank,
                world_size=self.size,
                timeout=self.timeout,
                device_id=self.device,
            )

    def _wait_for_all(self, number: int) -> None:
        keys = [f"left{number}/{rank}" for rank in range(self.size)]
        with peers.watched():
            self.store.set(keys[self.rank], "")
            end = time.monotonic() + self.timeout.total_seconds()
            # Asked again and again, since a wait in the store cannot be broken off by news.
            while time.monotonic() < end and not self.news.has_failed():
                if self.store.check(keys):
                    return
                time.sleep(_AGAIN)
            missing = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        raise ProcessError(
            self.news.failure()
            or f"There is no new process group without {ranks(missing)}, which did not leave what it was doing within "
            "ddp_timeout."
        )


def _break_connections(backend: str) -> None:
    """Ends the group here so that the others' collectives in it end too."""
    if not dist.is_initialized():
        return
    if backend == "nccl":
        with contextlib.suppress(RuntimeError):  # the thread that reads the news may have done it
            dist.distributed_c10d._abort_process_group()
        return
    # Ending the group leaves its connections open as long as anything, such as a model wrapped in DDP, refers to it.
    gloo.break_off(gloo.groups_in_training())
    gloo.settle()
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
    # Here as a rule nothing refers to them any more. Each takes memory, and the next group is made for the want of it.
    gloo.take_apart()


def _abort_here() -> None:
    """Another rank has left: what this one waits for on its device ends."""
    group: Callable[[], None] | None = getattr(dist.group.WORLD, "abort", None)
    if group is not None:
        group()
