"""In what two checkpoints differ: configuration, position, every tensor, every state.

Tensors are mapped from their files and compared a stretch at a time, so that neither state is ever in memory whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from drivetrain.changes import INCIDENTAL
from drivetrain.checkpoint.contents import CheckpointContents
from drivetrain.checkpoint.manifest import MANIFEST
from drivetrain.checkpoint.plain import plain
from drivetrain.checkpoint.reader import load_checkpoint
from drivetrain.checkpoint.weights import read_weights
from drivetrain.slots import TrainState

_STRETCH = 1 << 20  # elements compared at once
_OF_THE_CLOCK = ("_runtime", "_samples_per_second", "_steps_per_second", "_tokens_per_second")
_STATE = ("global_step", "epoch", "max_steps", "best_metric", "total_flos")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing in which two checkpoints differ.

    Attributes:
        part: "arguments", "plugins", "versions", "progress", "position", "weights", "gradients", "optimizer",
            "scheduler", "random", "log", "callbacks", "plugin states".
        name: within the part; the parts of a path are joined by "/".
        kind: "only in A", "only in B", "value", "shape", "dtype" or "tensor" (its elements).
        a, b: the values, or shapes, or dtypes; None for elements, and for what is not shown (generators).
        differ, of: how many elements of a tensor differ, of how many.
        max_abs, max_rel: by how much at most; the latter as a share of the larger of the two.
    """

    part: str
    name: str
    kind: str
    a: Any = None
    b: Any = None
    differ: int | None = None
    of: int | None = None
    max_abs: float | None = None
    max_rel: float | None = None


@dataclass(slots=True)
class Difference:
    """What `compare` found.

    Attributes:
        changes: everything in which the two differ, in the order of the parts.
        tensors: part -> how many tensors of it are in both.
        weights_alone: whether one of the two is no checkpoint but a folder of weights, so that nothing else was
            compared.
    """

    changes: list[Change] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)
    weights_alone: bool = False

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.changes

    def of_part(self, part: str) -> list[Change]:
        """The changes of a part."""
        return [change for change in self.changes if change.part == part]


def compare(a: str, b: str) -> Difference:
    """Compares two checkpoints bit for bit.

    What says only where a run's output goes, and what the clock says in the log, is left out.

    Args:
        a, b: checkpoints, or any folders with weights; then the weights alone are compared.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    first, second = _read(a), _read(b)
    found = Difference(weights_alone=None in (first.step, second.step))
    parts = [("weights", _weights(first), _weights(second))]
    if not found.weights_alone:
        parts = [
            *_configuration(first, second),
            *parts,
            *_states(first, second),
            ("random", _random(a, first), _random(b, second)),
            ("log", _log(first), _log(second)),
            ("callbacks", first.callback_states, second.callback_states),
            ("plugin states", first.plugin_states, second.plugin_states),
        ]
    for part, one, other in parts:
        found.changes += _Comparison(part, found.tensors).between("", one, other)
    return found


def _read(folder: str) -> CheckpointContents:
    if os.path.lexists(os.path.join(folder, MANIFEST)):
        return load_checkpoint(folder, verify=False)
    return CheckpointContents(TrainState(read_weights(folder)))


def _weights(contents: CheckpointContents) -> dict[str, Any]:
    return contents.train_state.weights if contents.train_state is not None else {}


Part = tuple[str, Any, Any]


def _configuration(first: CheckpointContents, second: CheckpointContents) -> Iterator[Part]:
    yield "arguments", _arguments(first), _arguments(second)
    yield "plugins", first.plugins, second.plugins
    yield "versions", first.versions, second.versions
    yield "progress", _progress(first), _progress(second)
    yield "position", first.position, second.position


def _arguments(contents: CheckpointContents) -> dict[str, Any]:
    return {name: value for name, value in contents.args.items() if name not in INCIDENTAL}


def _progress(contents: CheckpointContents) -> dict[str, Any]:
    state = contents.trainer_state
    assert isinstance(state, dict)
    best = state.get("best_model_checkpoint")
    told = {name: state.get(name) for name in _STATE}
    told["best_model_checkpoint"] = os.path.basename(os.path.normpath(best)) if best else None
    told["loss since the last row of the log"] = contents.loss
    return {**told, "world_size": contents.world_size}


def _states(first: CheckpointContents, second: CheckpointContents) -> Iterator[Part]:
    one, other = first.train_state or TrainState({}), second.train_state or TrainState({})
    yield "gradients", one.gradients, other.gradients
    yield "optimizer", _optimizer(one), _optimizer(other)
    yield "scheduler", first.scheduler, second.scheduler


def _optimizer(state: TrainState) -> dict[str, Any]:
    told: dict[str, Any] = {**state.optimizer, "groups": dict(enumerate(state.groups))}
    told.update({name: state.optimizer_extra[name] for name in state.optimizer_extra})
    if state.loss_scale is not None:
        told["loss scale"] = state.loss_scale
    return told


def _random(folder: str, contents: CheckpointContents) -> dict[str, Any]:
    """The generators of each rank, each as a whole: a list of its numbers would tell nobody anything."""
    told: dict[str, Any] = {}
    for rank in range(contents.world_size):
        here = contents if rank == 0 else load_checkpoint(folder, rank, contents.world_size, verify=False)
        if here.random is not None:
            told[f"rank {rank}"] = {name: _Opaque(v) for name, v in here.random.as_dict().items()}
    return told


def _log(contents: CheckpointContents) -> dict[str, Any]:
    state = contents.trainer_state
    assert isinstance(state, dict)
    rows = state.get("log_history") or []
    cleaned = ({key: row[key] for key in row if not key.endswith(_OF_THE_CLOCK)} for row in rows)
    return {f"row {n} (step {row.get('step')})": row for n, row in enumerate(cleaned, 1)}


@dataclass(frozen=True, slots=True)
class _Opaque:
    value: Any


class _Comparison:
    def __init__(self, part: str, tensors: dict[str, int]) -> None:
        self.part = part
        self.tensors = tensors

    def between(self, name: str, a: Any, b: Any) -> Iterator[Change]:
        if isinstance(a, _Opaque) and isinstance(b, _Opaque):
            if any(_Comparison(self.part, {}).between(name, a.value, b.value)):
                yield Change(self.part, name, "value")
            return
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and not a.dtype.hasobject:
            a, b = torch.from_numpy(np.atleast_1d(a).copy()), torch.from_numpy(np.atleast_1d(b).copy())
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            self.tensors[self.part] = self.tensors.get(self.part, 0) + 1
            change = compare_tensors(self.part, name or "value", a, b)
            if change is not None:
                yield change
        elif isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from self._mappings(name, a, b)
        elif type(a) is type(b) and isinstance(a, (list, tuple)) and len(a) == len(b):
            for number, (one, other) in enumerate(zip(a, b, strict=True)):
                yield from self.between(f"{name}/{number}" if name else str(number), one, other)
        elif not _same(a, b):
            yield Change(self.part, name or "value", "value", _shown(a), _shown(b))

    def _mappings(self, name: str, a: Mapping[Any, Any], b: Mapping[Any, Any]) -> Iterator[Change]:
        for key in [*a, *(key for key in b if key not in a)]:
            path = f"{name}/{key}" if name else str(key)
            if key not in b:
                yield Change(self.part, path, "only in A", _shown(a[key]))
            elif key not in a:
                yield Change(self.part, path, "only in B", None, _shown(b[key]))
            else:
                yield from self.between(path, a[key], b[key])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return False
    return bool(a == b) or (a != a and b != b)  # NaN is NaN


def _shown(value: Any) -> Any:
    """A value as JSON; of tensors their dtype and shape."""
    if isinstance(value, torch.Tensor):
        return f"{_dtype(value)} {list(value.shape)}"
    if isinstance(value, Mapping):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    return plain(value.value if isinstance(value, _Opaque) else value)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def compare_tensors(part: str, name: str, a: torch.Tensor, b: torch.Tensor) -> Change | None:
    """In what two tensors differ, or None where every bit is the same. Of dtypes that differ the values count too."""
    if a.shape != b.shape:
        return Change(part, name, "shape", list(a.shape), list(b.shape))
    differ, max_abs, max_rel = 0, 0.0, 0.0
    one, other = a.detach().reshape(-1), b.detach().reshape(-1)
    for start in range(0, one.numel(), _STRETCH):
        x, y = one[start : start + _STRETCH], other[start : start + _STRETCH]
        unequal = _unequal(x, y)
        count = int(unequal.sum())
        if count:
            differ += count
            by, share = _distance(x[unequal], y[unequal])
            max_abs, max_rel = max(max_abs, by), max(max_rel, share)
    if a.dtype != b.dtype:
        return Change(part, name, "dtype", _dtype(a), _dtype(b), differ, a.numel(), max_abs, max_rel)
    if not differ:
        return None
    return Change(part, name, "tensor", None, None, differ, a.numel(), max_abs, max_rel)


def _unequal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.dtype == y.dtype and x.element_size() in _BITS:
        bits = _BITS[x.element_size()]
        return x.contiguous().view(bits) != y.contiguous().view(bits)
    one, other = _wide(x), _wide(y)
    return (one != other) & ~(one.isnan() & other.isnan())


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _distance(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The largest distance, and the largest as a share of the larger number. Infinite where one is no number."""
    one, other = _wide(x), _wide(y)
    by = torch.nan_to_num((one - other).abs(), nan=torch.inf, posinf=torch.inf)
    share = by / torch.maximum(one.abs(), other.abs()).nan_to_num(nan=1.0, posinf=1.0).clamp_min(1e-300)
    both = one.isnan() & other.isnan()  # other bits, the same value
    return float(by.masked_fill(both, 0).max()), float(share.masked_fill(both, 0).max())
