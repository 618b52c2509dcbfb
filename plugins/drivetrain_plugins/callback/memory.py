"""Memory that this process has, on the host and on its device, read without waiting for either."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain_plugins.callback.memory_metrics import resident


def host_memory() -> int | None:
    """Bytes of this process that are in main memory; None where the system does not tell."""
    try:
        return resident()
    except ImportError:  # of psutil, which has a way on the other systems and is not required
        return None


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
