"""The process group of processes that torchrun started."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.processes import Processes, attempt_and_launch

logger = logging.getLogger("drivetrain")

# Waiting for the others at the end has a bound: a rank that died must not hold up the rest.
_FAREWELL = timedelta(seconds=30)
_AVAILABLE = {
    "nccl": dist.is_nccl_available,
    "gloo": dist.is_gloo_available,
    "mpi": dist.is_mpi_available,
}
_failed = False


def backends() -> list[str]:
    """The backends that this torch can talk by."""
    own = [name for name, available in _AVAILABLE.items() if available()]
    others = [name for name in dist.Backend.backend_list if name not in ("undefined", *_AVAILABLE)]
    return own + [name for name in others if name in dist.Backend._plugins]


class Torchrun:
    """Makes the process group from the environment."""

    def start(self, args: Any) -> Processes:
        """Makes the process group, and chooses this process's device.

        Raises:
            ConfigurationError: `ddp_backend` names a backend that this torch lacks.
        """
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
        on_cuda = torch.cuda.is_available() and not args.use_cpu
        wanted = args.ddp_backend or ("nccl" if on_cuda and dist.is_nccl_available() else "gloo")
        if wanted not in backends():
            raise ConfigurationError(
                f"ddp_backend={wanted!r} is not in this torch, which has: {', '.join(backends())}."
            )
        if on_cuda:
            torch.cuda.set_device(local)
        device = torch.device("cuda", local) if on_cuda else torch.device("cpu")
        if not dist.is_initialized():
            dist.init_process_group(
                wanted,
                timeout=timedelta(seconds=args.ddp_timeout),
                device_id=device if on_cuda and wanted == "nccl" else None,
            )
            _end_at_exit()
        attempt, launch = attempt_and_launch()
        return Processes(
            device, rank, local, size, int(on_cuda), dist.barrier, attempt=attempt, launch=launch
        )


def _end_at_exit() -> None:
    """Whoever made the process group ends it. After a failure nobody waits for anybody."""
    hook = sys.excepthook

    def note_failure(*details: Any) -> None:
        global _failed
        _failed = True
        hook(*details)

    sys.excepthook = note_failure
    atexit.register(_end)


def _end() -> None:
    if not dist.is_initialized():
        return
    if not _failed:
        try:
            if dist.get_backend() == "gloo":
                dist.monitored_barrier(timeout=_FAREWELL)
            else:
                dist.barrier()
        except RuntimeError as error:
            logger.warning("Not every process came to the end: %s", error)
    dist.destroy_process_group()


class TorchrunPlugin:
    """The launcher `torchrun`."""

    @hookimpl
    def make_launcher(self, args: Any) -> Torchrun:
        """One for each process."""
        return Torchrun()
