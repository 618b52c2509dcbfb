"""What a forward pass gives back: its tensors, wherever they lie in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

_HALF = (torch.float16, torch.bfloat16)


def to_fp32(outputs: Any) -> Any:
    """`outputs` with its 16-bit floating tensors in float32, so that loss and metrics are computed in it.

    Anything but tensors in lists, tuples, named tuples and mappings, nested, is as it was.
    """
    return map_leaves(outputs, _widened)


def _widened(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.dtype in _HALF else leaf


def map_leaves(outputs: Any, change: Callable[[Any], Any]) -> Any:
    """`outputs` with each leaf changed: what lies in lists, tuples, named tuples and mappings, nested.

    What the model returned is not changed: containers with a leaf that is another object now are copied,
    keeping their type.
    """
    if isinstance(outputs, Mapping):
        changed = {
            key: new for key, value in outputs.items() if (new := map_leaves(value, change)) is not value
        }
        return _with_items(outputs, changed) if changed else outputs
    if isinstance(outputs, tuple | list):
        new_items = [map_leaves(item, change) for item in outputs]
        if all(new is old for new, old in zip(new_items, outputs, strict=True)):
            return outputs
        if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
            return type(outputs)(*new_items)
        return type(outputs)(new_items)
    return change(outputs)


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
