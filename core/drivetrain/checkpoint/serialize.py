"""Nested Python values as JSON and tensors, and back, exactly. Nothing is ever pickled.

JSON has no tuples, no dictionaries with keys other than strings, no NaN. Whatever JSON cannot hold as it is
becomes an object with one key that begins with a dollar sign:

    {"$tuple": [...]}  {"$dict": [[key, value], ...]}  {"$float": "nan"}  {"$tensor": "name in the file"}  ...

A plain dictionary whose keys are strings stays an object, unless a key begins with "$"; so the form is
unambiguous. Types are matched exactly: a subclass (a named tuple, an enum) is refused rather than returned as
something else.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from drivetrain.checkpoint.tensors import DTYPES
from drivetrain.errors import CheckpointError

JSON = Any
"""None, bool, int, finite float, str, and lists and string-keyed dictionaries of these."""

MAX_DEPTH = 128
_PLAIN_INTEGER = 2**64  # beyond this, hexadecimal: Python's JSON refuses decimals of more than 4,300 digits


def escape(part: object) -> str:
    """One part of a tensor's name, so that parts joined by "/" stay unambiguous whatever they contain."""
    return "".join(
        c if c.isprintable() and c not in "%/" else f"%{ord(c):02X}" if ord(c) < 256 else f"%u{ord(c):06X}"
        for c in str(part)
    )


def pack(value: Any, tensors: dict[str, torch.Tensor], *, prefix: str = "", what: str = "state") -> JSON:
    """The JSON form of `value`; its tensors are added to `tensors`, without copies.

    A tensor that occurs twice is stored once and is one object again when it is read.

    Args:
        value: None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, Counter, deque,
            set, frozenset, tensors, numpy arrays and scalars, `torch.dtype`, `torch.device`, `torch.Size`,
            nested.
        tensors: receives the tensors under the path at which they were met, its parts joined by "/".
        prefix: put before these names.
        what: names the value in errors.

    Raises:
        CheckpointError: something else was met; the sentence gives its path and its type.
    """
    return _Packer(tensors, prefix, what).pack(value, ())


def unpack(tree: JSON, tensors: Mapping[str, torch.Tensor], *, what: str = "state") -> Any:
    """The value that `pack` was given.

    Raises:
        CheckpointError: the tree is not one that `pack` writes, or names a tensor that is not there.
    """
    return _Unpacker(tensors, what).unpack(tree, 0)


class _Packer:
    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str, what: str) -> None:
        self.tensors = tensors
        self.prefix = prefix
        self.what = what
        self.names: dict[tuple[Any, ...], str] = {}
        self.under_way: set[int] = set()

    def pack(self, value: Any, path: tuple[object, ...]) -> JSON:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_PLAIN_INTEGER < value < _PLAIN_INTEGER else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is torch.Tensor:
            return self._tensor(value, path)
        if kind is np.ndarray or isinstance(value, np.generic):
            return self._numpy(value, path)
        leaf = _LEAVES.get(kind)
        if leaf is not None:
            return {leaf[0]: leaf[1](value)}
        return self._container(value, kind, path)

    def _container(self, value: Any, kind: type, path: tuple[object, ...]) -> JSON:
        if len(path) > MAX_DEPTH or id(value) in self.under_way:
            raise self._refused(path, "contains itself, or is nested too deeply")
        self.under_way.add(id(value))
        try:
            if kind is list:
                return [self.pack(item, (*path, i)) for i, item in enumerate(value)]
            if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.pack(item, (*path, key)) for key, item in value.items()}
            if kind in _PAIRS:
                return {
                    _PAIRS[kind]: [
                        [self.pack(key, (*path, "a key")), self.pack(item, (*path, key))]
                        for key, item in value.items()
                    ]
                }
            if kind in _SEQUENCES:
                return {_SEQUENCES[kind]: [self.pack(item, (*path, i)) for i, item in enumerate(value)]}
            if kind is deque:
                return {
                    "$deque": [value.maxlen, [self.pack(item, (*path, i)) for i, item in enumerate(value)]]
                }
        finally:
            self.under_way.discard(id(value))
        raise self._refused(path, f"is a {kind.__module__}.{kind.__qualname__}")

    def _tensor(self, tensor: torch.Tensor, path: tuple[object, ...]) -> JSON:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            kind = tensor.device.type if tensor.device.type == "meta" else str(tensor.layout)
            raise self._refused(path, f"is a tensor of a kind that cannot be stored ({kind}, {tensor.dtype})")
        tensor = tensor.detach().resolve_conj().resolve_neg()
        same = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        name = self.names.get(same) if tensor.numel() else None
        if tensor.dtype in DTYPES:
            if name is None:
                name = self.names[same] = self._add(path, tensor)
            return {"$tensor": name}
        if name is None:  # complex128, for one: its bytes, and beside them what they are
            name = self.names[same] = self._add(path, tensor.contiguous().reshape(-1).view(torch.uint8))
        return {"$tensor": name, "dtype": _dtype_name(tensor.dtype), "shape": list(tensor.shape)}

    def _numpy(self, value: Any, path: tuple[object, ...]) -> JSON:
        array = np.asarray(value)
        if array.dtype.hasobject or array.dtype.names is not None:
            raise self._refused(path, f"is a numpy array of {array.dtype}")
        if type(value) is not np.ndarray:
            return {"$scalar": [array.dtype.str, array.tobytes().hex()]}
        raw = np.frombuffer(array.tobytes(), dtype=np.uint8)
        name = self._add(path, torch.from_numpy(raw.copy()))
        return {"$array": name, "dtype": array.dtype.str, "shape": list(array.shape)}

    def _add(self, path: tuple[object, ...], tensor: torch.Tensor) -> str:
        name = plain = self.prefix + ("/".join(escape(part) for part in path) or "value")
        number = 1
        while name in self.tensors:  # {1: a, "1": b}: a sign that no escaped part ends with
            number += 1
            name = f"{plain}%{number}"
        self.tensors[name] = tensor
        return name

    def _refused(self, path: tuple[object, ...], why: str) -> CheckpointError:
        where = "".join(f"[{part!r}]" for part in path)
        return CheckpointError(
            f"{self.what}{where} {why} and cannot be stored in a checkpoint; keep numbers, strings, lists, "
            "tuples, dictionaries and tensors in it."
        )


class _Unpacker:
    def __init__(self, tensors: Mapping[str, torch.Tensor], what: str) -> None:
        self.tensors = tensors
        self.what = what

    def unpack(self, tree: JSON, depth: int) -> Any:
        if depth > 2 * MAX_DEPTH:
            raise self._damaged("is nested too deeply")
        if isinstance(tree, list):
            return [self.unpack(item, depth + 1) for item in tree]
        if not isinstance(tree, dict):
            return tree
        tag = next(iter(tree), "")
        if not tag.startswith("$"):
            return {key: self.unpack(item, depth + 1) for key, item in tree.items()}
        try:
            return self._tagged(tag, tree, depth + 1)
        except CheckpointError:
            raise
        except Exception as error:  # whatever a damaged file provokes: wrong types, lengths, numbers
            raise self._damaged(f"holds a {tag} that cannot be read ({error})") from error

    def _tagged(self, tag: str, tree: dict[str, Any], depth: int) -> Any:
        body = tree[tag]
        if tag == "$tensor":
            tensor = self._get(body)
            if len(tree) == 1:
                return tensor
            # Copied: in a mapped file the bytes may begin anywhere, and complex numbers must be aligned.
            return tensor.clone().view(_dtype(tree["dtype"])).reshape(tree["shape"])
        if tag == "$array":
            raw = self._get(body).numpy().tobytes()
            return np.frombuffer(raw, dtype=_numpy_dtype(tree["dtype"])).reshape(tree["shape"]).copy()
        if tag == "$scalar":
            return np.ndarray((), _numpy_dtype(body[0]), bytes.fromhex(body[1]))[()]
        if tag in _READ_PAIRS:
            pairs = [(self.unpack(key, depth), self.unpack(item, depth)) for key, item in body]
            return _READ_PAIRS[tag](pairs)
        if tag in _READ_SEQUENCES:
            return _READ_SEQUENCES[tag](self.unpack(item, depth) for item in body)
        if tag == "$deque":
            return deque((self.unpack(item, depth) for item in body[1]), maxlen=body[0])
        if tag in _READ_LEAVES:
            return _READ_LEAVES[tag](body)
        raise self._damaged(f"holds a {tag!r}, which this version does not know")

    def _get(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise self._damaged(f"names the tensor {name!r}, which is not in its file")
        return self.tensors[name]

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"The checkpoint's {self.what} {why}; resume from an earlier checkpoint.")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no dtype {name!r}")
    return found


def _numpy_dtype(text: str) -> np.dtype[Any]:
    dtype = np.dtype(text)
    if dtype.hasobject:
        raise ValueError(f"dtype {text!r}")
    return dtype


def _device(text: str) -> torch.device:
    return torch.device(text)


_LEAVES: dict[type, tuple[str, Callable[[Any], JSON]]] = {
    complex: ("$complex", lambda value: [value.real.hex(), value.imag.hex()]),
    bytes: ("$bytes", bytes.hex),
    torch.dtype: ("$dtype", _dtype_name),
    torch.device: ("$device", str),
    torch.Size: ("$size", list),
}
_READ_LEAVES: dict[str, Callable[[Any], Any]] = {
    "$int": lambda text: int(text, 16),
    "$float": float,
    "$complex": lambda parts: complex(float.fromhex(parts[0]), float.fromhex(parts[1])),
    "$bytes": bytes.fromhex,
    "$dtype": _dtype,
    "$device": _device,
    "$size": torch.Size,
}
_PAIRS: dict[type, str] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}
_READ_PAIRS: dict[str, Callable[[Any], Any]] = {
    "$dict": dict,
    "$ordered": OrderedDict,
    "$counter": lambda pairs: Counter(dict(pairs)),
}
_SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset"}
_READ_SEQUENCES: dict[str, Callable[[Any], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
