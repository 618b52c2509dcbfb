"""What strategies do with tensors of all ranks: one value for all, the mean, the rows together, each rank's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

K = TypeVar("K")


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


@torch.no_grad()
def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Sets tensors to the values that they have on rank 0. A collective.

    Args:
        tensors: the model's parameters or buffers, say; as many and of the same shapes on every rank.
    """
    for tensor in tensors:
        held = tensor.detach().contiguous()  # collectives refuse other strides (`channels_last`)
        dist.broadcast(held, src=0)
        if held.data_ptr() != tensor.data_ptr():
            tensor.copy_(held)


@torch.no_grad()
def average(tensors: Mapping[K, torch.Tensor], device: torch.device) -> dict[K, torch.Tensor]:
    """The mean over the ranks of each tensor by its name, on every rank. A collective.

    Ranks may lack some: a parameter that a rank did not use has no gradient there, which is one of zeros.

    Args:
        tensors: floating-point ones; of one name, one shape.
        device: where they are added up, and where the means are: the run's.
    """
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    known = {name: what for of_rank in reversed(told) for name, what in of_rank.items()}
    means: dict[K, torch.Tensor] = {}
    for name, (shape, dtype) in known.items():
        if name in tensors:
            total = torch.empty(shape, dtype=dtype, device=device).copy_(tensors[name])
        else:
            total = torch.zeros(shape, dtype=dtype, device=device)
        dist.all_reduce(total)
        means[name] = total.div_(len(told))
    return means


def gather(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each rank's own values, in host memory of rank 0, in the order of ranks; elsewhere an empty list. A collective.

    One name is gathered after another, so that beside what is given back no more than one name's values are held.

    Args:
        values: the same names on every rank; under each, nested tensors and plain values, which may differ in shape.
    """
    world, first = dist.get_world_size(), dist.get_rank() == 0
    ranks: list[dict[str, Any]] = [{} for _ in range(world)] if first else []
    for name, value in values.items():
        held: list[Any] | None = [None] * world if first else None
        dist.gather_object(_to_host(value), held, dst=0)
        for of_rank, found in zip(ranks, held or (), strict=True):
            of_rank[name] = found
    return ranks


def _to_host(value: Any) -> Any:
    """A copy without storage that is not its own: pickling a view takes all that it is a view of."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {name: _to_host(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_host(item) for item in value)
    return value
