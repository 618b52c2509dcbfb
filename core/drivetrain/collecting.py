"""Gathering nested tensors from all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist


def collect(tensors: Any) -> Any:
    """Every rank's tensors, concatenated along dimension 0 in the order of ranks, on every rank.

    Args:
        tensors: a tensor, or tuples, lists and mappings of them; of the same shapes on every rank.

    Returns:
        The same nesting; dimension 0 is as many times as long as there are ranks.
    """
    if isinstance(tensors, torch.Tensor):
        tensor = tensors.detach().contiguous()
        if tensor.dim() == 0:
            tensor = tensor.reshape(1)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)
    if isinstance(tensors, tuple) and hasattr(tensors, "_fields"):
        return type(tensors)(*[collect(found) for found in tensors])
    if isinstance(tensors, (tuple, list)):
        return type(tensors)(collect(found) for found in tensors)
    if isinstance(tensors, Mapping):
        return type(tensors)({name: collect(found) for name, found in tensors.items()})  # type: ignore[call-arg]
    return tensors
