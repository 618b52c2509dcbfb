"""What a forward pass under autocast gives back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

_HALF = (torch.float16, torch.bfloat16)


def to_fp32(outputs: Any) -> Any:
    """`outputs` with its 16-bit floating tensors in float32, so that loss and metrics are computed in it.

    Tensors, and lists, tuples, named tuples and mappings of them, nested; anything else as it is. What the
    model returned is not changed: containers with such a tensor are copied, keeping their type.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs.float() if outputs.dtype in _HALF else outputs
    if isinstance(outputs, Mapping):
        changed = {key: new for key, value in outputs.items() if (new := to_fp32(value)) is not value}
        return _with_items(outputs, changed) if changed else outputs
    if isinstance(outputs, tuple | list):
        new_items = [to_fp32(item) for item in outputs]
        if all(new is old for new, old in zip(new_items, outputs, strict=True)):
            return outputs
        if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
            return type(outputs)(*new_items)
        return type(outputs)(new_items)
    return outputs


def _with_items(mapping: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    """A copy of `mapping` with some values replaced, of its own type: transformers' outputs are objects."""
    if type(mapping) is dict:
        return {**mapping, **changed}
    if hasattr(mapping, "__setitem__"):
        result: Any = copy.copy(mapping)
        for key, value in changed.items():
            result[key] = value
        return result
    return type(mapping)({**mapping, **changed})  # type: ignore[call-arg]  # a read-only mapping of a dict
