"""Tensors, arrays and numbers of all ranks and of many batches brought together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch


def broadcast(value: Any, processes: Any) -> Any:
    """Rank 0's value, on every rank; small things, made of numbers and lists. A collective."""
    if processes.world_size == 1:
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held, src=0, device=_device(processes))
    return held[0]


def gather_counts(number: int, processes: Any) -> list[int]:
    """One number of each rank, in rank order. A collective."""
    if processes.world_size == 1:
        return [number]
    mine = torch.tensor([number], dtype=torch.int64, device=_device(processes))
    numbers = [torch.empty_like(mine) for _ in range(processes.world_size)]
    torch.distributed.all_gather(numbers, mine)
    return [int(other.item()) for other in numbers]


def gather_objects(value: Any, processes: Any, group: Any = None) -> list[Any]:
    """One small thing of each rank, in rank order; in a group of all ranks, by default the run's. A collective."""
    if processes.world_size == 1:
        return [value]
    values: list[Any] = [None] * processes.world_size
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def exchange_of(processes: Any) -> Callable[[Any], list[Any]]:
    """`gather_objects` among these processes, as a function of the value alone."""
    return partial(gather_objects, processes=processes)


def _device(processes: Any) -> torch.device:
    """Where a collective of the default group wants its tensors."""
    backend = str(torch.distributed.get_backend())
    return torch.device("cpu") if backend in ("gloo", "mpi") else torch.device(processes.device)


def nested_map(function: Any, value: Any) -> Any:
    """`function` of every leaf of nested lists, tuples and mappings."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[nested_map(function, item) for item in value])
    if isinstance(value, (list, tuple)):
        return type(value)(nested_map(function, item) for item in value)
    if isinstance(value, Mapping):
        return type(value)({name: nested_map(function, item) for name, item in value.items()})  # type: ignore[call-arg]
    return function(value)


def nested_detach(tensors: Any) -> Any:
    """The tensors without their graph."""
    return nested_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, tensors)


def nested_numpify(tensors: Any) -> Any:
    """The tensors as NumPy arrays on the host; bfloat16, which NumPy does not know, becomes float32."""
    return nested_map(_numpify, tensors)


def _numpify(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    leaf = leaf.detach().cpu()
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()


def to_host(tensors: Any) -> Any:
    """The tensors in host memory."""
    return nested_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, tensors)


def concatenate(chunks: Sequence[Any], padding: float = -100) -> Any:
    """Many nested tensors or arrays put together along dimension 0, in one allocation.

    Args:
        chunks: alike in structure; leaves of shape (rows, ...) that may differ in dimension 1.
        padding: fills dimension 1 up to the longest.

    Raises:
        TypeError: the chunks differ in structure, or a leaf is neither tensor nor array.
        ValueError: leaves differ in another dimension than 0 and 1.
    """
    first = chunks[0]
    if isinstance(first, (list, tuple, Mapping)):
        if any(type(chunk) is not type(first) or len(chunk) != len(first) for chunk in chunks):
            raise TypeError(
                "Batches of an evaluation give outputs of different structure: "
                f"{sorted({f'{type(chunk).__name__} of {len(chunk)}' for chunk in chunks})}."
            )
        if isinstance(first, Mapping):
            return type(first)({k: concatenate([chunk[k] for chunk in chunks], padding) for k in first})  # type: ignore[call-arg]
        parts = [concatenate([chunk[i] for chunk in chunks], padding) for i in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, torch.Tensor):
        tensors = [_at_least_1d(chunk) for chunk in chunks]
        width = common_width([tensor.shape for tensor in tensors])
        if width is None:
            return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        whole = tensors[0].new_full((sum(map(len, tensors)), width, *tensors[0].shape[2:]), padding)
        return _fill(whole, tensors)
    if isinstance(first, np.ndarray):
        arrays = [np.atleast_1d(chunk) for chunk in chunks]
        width = common_width([array.shape for array in arrays])
        if width is None:
            return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        shape = (sum(map(len, arrays)), width, *arrays[0].shape[2:])
        return _fill(np.full(shape, padding, dtype=arrays[0].dtype), arrays)
    raise TypeError(f"A {type(first).__name__} cannot be put together with those of other batches.")


def _at_least_1d(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


def common_width(shapes: Sequence[Sequence[int]]) -> int | None:
    """The greatest dimension 1, or None where all are alike (or there is none)."""
    tails = {tuple(shape[1:]) for shape in shapes}
    if len(tails) == 1:
        return None
    if len({tail[1:] for tail in tails}) > 1 or any(not tail for tail in tails):
        raise ValueError(
            "Outputs of batches may differ in dimension 1 (it is padded), but these have shapes "
            f"{sorted({tuple(shape) for shape in shapes})}: pad them in preprocess_logits_for_metrics."
        )
    return max(tail[0] for tail in tails)


def _fill(whole: Any, chunks: Sequence[Any]) -> Any:
    row = 0
    for chunk in chunks:
        whole[row : row + len(chunk), : chunk.shape[1]] = chunk
        row += len(chunk)
    return whole


def nested_concat(tensors: Any, new_tensors: Any, padding_index: float = -100) -> Any:
    """Two nested tensors or arrays along dimension 0, dimension 1 padded; see `concatenate`."""
    if type(tensors) is not type(new_tensors):
        raise TypeError(
            f"A {type(tensors).__name__} and a {type(new_tensors).__name__} cannot be put together."
        )
    return concatenate([tensors, new_tensors], padding_index)


def denumpify(metrics: Any) -> Any:
    """NumPy numbers and tensors of one element as Python numbers, in nested dicts, lists and tuples."""
    if isinstance(metrics, (list, tuple)):
        return type(metrics)(denumpify(item) for item in metrics)
    if isinstance(metrics, dict):
        return type(metrics)({name: denumpify(item) for name, item in metrics.items()})
    if isinstance(metrics, np.generic) or (isinstance(metrics, torch.Tensor) and metrics.numel() == 1):
        return metrics.item()
    return metrics


def collect_rows(value: Any, shares: Sequence[int], rank: int, run: Any, padding: float = -100) -> Any:
    """The rows of all ranks, in rank order; every rank gets them. A collective.

    `strategy.collect` is given pieces of one shape: rows are filled up to the longest share and dimension 1
    to the widest rank, and what was filled in is cut off again.

    Args:
        value: nested tensors of shape (rows, ...); a rank whose share is 0 gives one row for company.
        shares: true rows of each rank.
        rank: this rank.
        run: its strategy collects.
        padding: fills dimension 1.
    """
    if len(shares) == 1:
        return value
    leaves: list[torch.Tensor] = []
    nested_map(leaves.append, value)
    leaves = [_at_least_1d(leaf) for leaf in leaves]
    widths = torch.tensor(
        [[leaf.shape[1] if leaf.dim() > 1 else 0 for leaf in leaves]], device=leaves[0].device
    )
    widest = run.strategy.collect(widths).max(dim=0).values.tolist()
    tallest = max(shares)
    gathered = []
    for leaf, width in zip(leaves, widest, strict=True):
        if leaf.shape[0] != tallest or (leaf.dim() > 1 and leaf.shape[1] != width):
            shape = (tallest, *((width, *leaf.shape[2:]) if leaf.dim() > 1 else ()))
            filled = leaf.new_full(shape, padding if leaf.dtype != torch.bool else False)
            rows = min(leaf.shape[0], tallest)
            if leaf.dim() > 1:
                filled[:rows, : leaf.shape[1]] = leaf[:rows]
            else:
                filled[:rows] = leaf[:rows]
            leaf = filled
        everything = run.strategy.collect(leaf.contiguous())
        pieces = [everything[i * tallest : i * tallest + share] for i, share in enumerate(shares)]
        gathered.append(torch.cat(pieces))
    results = iter(gathered)
    return nested_map(lambda leaf: next(results), value)
