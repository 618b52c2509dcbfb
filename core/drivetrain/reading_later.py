"""Numbers that a device has yet to compute, read when they are there, so that nothing waits for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def read_later(tensor: torch.Tensor) -> Callable[[], list[Any]]:
    """Sends a tensor on its way to the host.

    Returns:
        A function that gives its numbers, and waits until they are there: on CUDA for nothing that was asked of the
        device after this call; elsewhere the tensor is read when the function is called.
    """
    if tensor.device.type != "cuda":
        return tensor.tolist
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.Event(tensor.device)
    copied.record()

    def read() -> list[Any]:
        copied.synchronize()
        numbers: list[Any] = host.tolist()
        return numbers

    return read
