"""Memory that this process has, on the host and on its device, read without waiting for either."""

from __future__ import annotations

import os
from typing import Any

import torch


def host_memory() -> int | None:
    """Bytes of this process that are in main memory; None where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import psutil  # has a way on the other systems; not required
    except ImportError:
        return None
    resident: int = psutil.Process().memory_info().rss
    return resident


def device_memory(device: torch.device) -> tuple[int, int | None] | None:
    """Bytes that torch's allocator holds on the device, and how many the device has where it tells; None on a CPU."""
    if device.type == "cpu":
        return None
    module: Any = getattr(torch, device.type, None)
    try:
        if device.type == "mps":
            return module.driver_allocated_memory(), module.recommended_max_memory()
        held = module.memory_reserved(device)
    except (AttributeError, RuntimeError):
        return None
    try:
        return held, module.get_device_properties(device).total_memory
    except (AttributeError, RuntimeError):
        return held, None


def size(amount: float) -> str:
    """`812 MiB`, `2.1 GiB`."""
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"
