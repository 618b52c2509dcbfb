"""Which device a process computes on, and by what it talks to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from drivetrain.errors import ConfigurationError
from drivetrain_plugins.launcher.environment import Place

_AVAILABLE = {
    "nccl": dist.is_nccl_available,
    "gloo": dist.is_gloo_available,
    "mpi": dist.is_mpi_available,
}


def backends() -> list[str]:
    """The backends that this torch can talk by."""
    own = [name for name, available in _AVAILABLE.items() if available()]
    others = [name for name in dist.Backend.backend_list if name not in ("undefined", *_AVAILABLE)]
    return own + [name for name in others if name in dist.Backend._plugins]


def choose(place: Place, args: Any) -> tuple[str, torch.device]:
    """The backend and the device of this process.

    Raises:
        ConfigurationError: this torch lacks the backend, or this machine has fewer devices than processes.
    """
    on_cuda = torch.cuda.is_available() and not args.use_cpu
    wanted = args.ddp_backend or ("nccl" if on_cuda and dist.is_nccl_available() else "gloo")
    if wanted not in backends():
        raise ConfigurationError(
            f"ddp_backend={wanted!r} is not in this torch, which has: {', '.join(backends())}."
        )
    if wanted == "nccl" and not on_cuda:
        raise ConfigurationError(
            "ddp_backend='nccl' needs a CUDA device on every process, and this one computes on the CPU: use "
            "ddp_backend='gloo'."
        )
    if not on_cuda:
        return wanted, torch.device("cpu")
    count = torch.cuda.device_count()
    # srun --gpus-per-task shows each task its own device alone; whether it is its own is seen when all have come.
    index = 0 if count == 1 else place.local_rank
    if index >= count:
        raise ConfigurationError(
            f"Rank {place.rank} is process {place.local_rank} of its machine (LOCAL_RANK), which has {count} CUDA "
            f"devices: start at most {count} processes there, or set use_cpu=True."
        )
    return wanted, torch.device("cuda", index)


def identity(device: torch.device | None) -> str | None:
    """What tells one accelerator from all others; None of a CPU."""
    if device is None or device.type != "cuda":
        return None
    return str(torch.cuda.get_device_properties(device).uuid)


def check_not_shared(cards: Sequence[dict[str, Any]]) -> None:
    """Refuses two processes on one device under NCCL, which cannot do that.

    Raises:
        ConfigurationError: naming both.
    """
    seen: dict[str, int] = {}
    for card in cards:
        device = card.get("device")
        if device is None or card.get("backend") != "nccl":
            continue
        if device in seen:
            raise ConfigurationError(
                f"Ranks {seen[device]} and {card['rank']} both have the CUDA device {card['device_name']} of "
                f"{card['host']}: start one process for each device, or set ddp_backend='gloo' to share it."
            )
        seen[device] = int(card["rank"])
