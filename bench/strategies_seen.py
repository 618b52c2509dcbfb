"""Whether the engine that was asked for really ran, and what of the optimizer it left to this process."""

from __future__ import annotations

from typing import Any

import torch


class Unable(Exception):
    """A library that does not drive an engine here, and why."""


# The class that shows that the engine really ran.
ENGINES = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPModule",
    "fsdp1": "FullyShardedDataParallel",
    "zero2": "DeepSpeedEngine",
    "oss": "ShardedDataParallel",
}


def elements(tensors: Any) -> int:
    """How many numbers this process holds of these tensors."""
    return sum(getattr(tensor, "_local_tensor", tensor).numel() for tensor in tensors)


def described(strategy: str, model: Any, optimizer: Any) -> dict[str, Any]:
    """The engine, and what of the optimizer's state this process holds.

    Raises:
        Unable: another engine ran.
    """
    names = [cls.__name__ for cls in type(model).__mro__]
    if ENGINES[strategy] not in names:
        raise Unable(f"it trains with {names[0]} in place of {ENGINES[strategy]}, and does not say so.")
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    state = getattr(optimizer, "optim", optimizer).state.values()
    held = elements(
        value
        for entry in state
        if isinstance(entry, dict)
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    return {"engine": ENGINES[strategy], "optimizer_elements": held}
