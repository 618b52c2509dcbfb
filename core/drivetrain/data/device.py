"""Batches on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def to_device(batch: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """The batch with its tensors on `device`; tensors that are there already are not touched.

    Follows dicts and other mappings, lists, tuples and named tuples. A dict comes back as a new one, so that
    what a loss function pops from it stays in the batch.
    """
    kind = type(batch)
    if kind is dict:
        moved = dict(batch)
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                if value.device != device:
                    moved[name] = value.to(device, non_blocking=non_blocking)
            else:
                moved[name] = to_device(value, device, non_blocking)
        return moved
    if isinstance(batch, torch.Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, Mapping):
        return kind({name: to_device(value, device, non_blocking) for name, value in batch.items()})
    if isinstance(batch, tuple):
        if hasattr(batch, "to"):  # a PackedSequence
            return batch.to(device)
        values = [to_device(value, device, non_blocking) for value in batch]
        return kind(*values) if hasattr(batch, "_fields") else kind(values)
    if isinstance(batch, list):
        return kind(to_device(value, device, non_blocking) for value in batch)
    return batch


def find_batch_size(batch: Any) -> int | None:
    """The size of dimension 0 of the first tensor or array found, or None."""
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        return int(batch.shape[0]) if len(batch.shape) > 0 else None
    values = (
        batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    )
    for value in values:
        found = find_batch_size(value)
        if found is not None:
            return found
    return None


def first_row(batch: Any) -> Any:
    """The batch cut to its first row, where it is made of tensors and arrays."""
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        return batch[:1] if len(batch.shape) > 0 else batch
    if isinstance(batch, Mapping):
        return type(batch)({name: first_row(value) for name, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[first_row(value) for value in batch])
    if isinstance(batch, (list, tuple)):
        return type(batch)(first_row(value) for value in batch)
    return batch
