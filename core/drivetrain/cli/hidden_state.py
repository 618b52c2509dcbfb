"""What of a run changes while it trains and is in no checkpoint: where to look when a resume is not exact.

A guess, by comparing the attributes of the model's modules, the callbacks, the collator and the data set at the
beginning of training and at its end. What a checkpoint holds is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash

_ITEMS = 1000  # of a container; larger ones are no counters
_DEPTH = 3
_OF_MODULES = frozenset(vars(torch.nn.Module()))


def hidden_state(trainer: Any) -> dict[str, str]:
    """A fingerprint of each attribute that no checkpoint holds, by a name for people."""
    found: dict[str, str] = {}
    for name, thing in _things(trainer):
        for attribute, value in thing.items():
            text = _fingerprint(value, 0)
            if text is not None:
                found[f"{name}.{attribute}"] = text
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The names whose fingerprints are others now, or were not there."""
    return [name for name in after if before.get(name) != after[name]]


def _things(trainer: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, module in trainer.model.named_modules():
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            continue  # it says by itself what is to be kept
        own = {name: value for name, value in vars(module).items() if name not in _OF_MODULES}
        own.update({name: module._buffers[name] for name in module._non_persistent_buffers_set})
        yield f"the model's {place or type(module).__name__}", own
    listeners = [*trainer.callback_handler.callbacks, *trainer._plugins]
    for listener in listeners:
        keeps = hasattr(listener, "save_state") or callable(getattr(listener, "state", None))
        if not keeps and not _is_ours(listener):
            yield f"the callback {type(listener).__name__}", _attributes(listener)
    for name, thing in (
        ("the data collator", trainer.data_collator),
        ("train_dataset", trainer.train_dataset),
    ):
        if not hasattr(thing, "state_dict") and not _is_ours(thing):
            yield name, _attributes(thing)


def _attributes(thing: Any) -> dict[str, Any]:
    return dict(getattr(thing, "__dict__", {}))


def _is_ours(thing: Any) -> bool:
    return type(thing).__module__.startswith("drivetrain")


def _fingerprint(value: Any, depth: int) -> str | None:
    """A text that is another one where the value is; None for what cannot be looked into."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, torch.Tensor):
        raw = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        return str(xxhash.xxh3_64_hexdigest(raw.numpy().tobytes()))
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return str(xxhash.xxh3_64_hexdigest(value.tobytes()))
    if isinstance(value, torch.Generator):
        return _fingerprint(value.get_state(), depth)
    if isinstance(value, random.Random):
        return str(xxhash.xxh3_64_hexdigest(repr(value.getstate()).encode()))
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        state = value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state()
        return str(xxhash.xxh3_64_hexdigest(repr(state).encode()))
    if (
        depth == _DEPTH
        or not isinstance(value, (list, tuple, set, frozenset, Mapping))
        or len(value) > _ITEMS
    ):
        return None
    items = (
        value.items()
        if isinstance(value, Mapping)
        else sorted(value, key=repr)
        if isinstance(value, (set, frozenset))
        else value
    )
    parts = [_fingerprint(item, depth + 1) for item in items]
    return str(parts) if None not in parts else None
