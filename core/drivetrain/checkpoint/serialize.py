"""Nested Python values as JSON and tensors, and back, exactly. Nothing is ever pickled.

JSON has no tuples, no dictionaries with keys other than strings, no NaN. Whatever JSON cannot hold as it is
becomes an object with one key that begins with a dollar sign:

    {"$tuple": [...]}  {"$dict": [[key, value], ...]}  {"$float": "nan"}  {"$tensor": "name in the file"}  ...

A plain dictionary whose keys are strings stays an object, unless a key begins with "$"; so the form is
unambiguous. Types are matched exactly: a subclass (a named tuple, an enum) is refused rather than returned as
something else.

Whoever reads a tree trusts nothing in it. A tensor that is named again and again is one object, and what all names
together stand for is bounded by the size of the file, so that a reader who copies what it is given (an optimizer
does) needs memory in proportion to the file, whatever the file says.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from drivetrain.checkpoint.tensors import DTYPES, reason_of
from drivetrain.errors import CheckpointError

JSON = Any
"""None, bool, int, finite float, str, and lists and string-keyed dictionaries of these."""

MAX_DEPTH = 128
_PLAIN_INTEGER = 2**64  # beyond this, hexadecimal: Python's JSON refuses decimals of more than 4,300 digits
_REPEATED = 2  # names of one tensor may stand for this many times the bytes of all tensors; beyond, it is stored again
_REPEATED_SMALL = (
    1 << 20
)  # bytes that may be named again beside that; a reader allows for each part of a file
_MANY = 1000


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
    return Unpacker(tensors).unpack(tree, what)


class _Packer:
    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str, what: str) -> None:
        self.tensors = tensors
        self.prefix = prefix
        self.what = what
        self.names: dict[tuple[Any, ...], str] = {}
        self.under_way: set[int] = set()
        self.stored = self.repeated = 0  # bytes

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
        size = tensor.numel() * tensor.element_size()
        if name is not None and self.repeated + size > _REPEATED * self.stored + _REPEATED_SMALL:
            name = None  # so often that a reader would refuse it
        if name is None:
            self.stored += size
        else:
            self.repeated += size
        if tensor.dtype in DTYPES:
            if name is None:
                name = self.names[same] = self._add(path, tensor)
            return {"$tensor": name}
        if name is None:  # complex128, for one: its bytes, and beside them what they are
            name = self.names[same] = self._add(path, tensor.contiguous().reshape(-1).view(torch.uint8))
        return {"$tensor": name, "dtype": _dtype_name(tensor.dtype), "shape": list(tensor.shape)}

    def _numpy(self, value: Any, path: tuple[object, ...]) -> JSON:
        array = np.asarray(value)
        if not _NUMPY_DTYPE.fullmatch(array.dtype.str) or np.dtype(array.dtype.str) != array.dtype:
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


class Unpacker:
    """Reads the trees of one file.

    Args:
        tensors: those of the file beside it.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.what = "state"
        self.made: dict[str, tuple[Any, Any]] = {}  # name -> (what it was read as, what was made of it)
        self.named: set[str] = set()
        whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self.left = _REPEATED * whole + 64 * _REPEATED_SMALL

    def unpack(self, tree: JSON, what: str = "state") -> Any:
        """The value that `pack` was given.

        Args:
            tree: its JSON.
            what: names it in errors.

        Raises:
            CheckpointError: as the function `unpack`.
        """
        self.what = what
        try:
            return self._value(tree, 0)
        except RecursionError as error:
            raise self._damaged("is nested too deeply") from error

    def _value(self, tree: JSON, depth: int) -> Any:
        if depth > MAX_DEPTH + 1:
            raise self._damaged("is nested too deeply")
        if isinstance(tree, list):
            return [self._value(item, depth + 1) for item in tree]
        if not isinstance(tree, dict):
            return tree
        tag = next(iter(tree), "")
        if not tag.startswith("$"):
            return {key: self._value(item, depth + 1) for key, item in tree.items()}
        try:
            return self._tagged(tag, tree, depth + 1)
        except (CheckpointError, RecursionError):
            raise
        except Exception as error:  # whatever a damaged file provokes: wrong types, lengths, numbers
            raise self._damaged(f"holds a {tag} that cannot be read ({reason_of(error)})") from error

    def _tagged(self, tag: str, tree: dict[str, Any], depth: int) -> Any:
        body = tree[tag]
        if tag == "$tensor":
            return self._get(body) if len(tree) == 1 else self._once(body, tree, _viewed)
        if tag == "$array":
            return self._once(body, tree, _array)
        if tag == "$scalar":
            return np.ndarray((), _numpy_dtype(body[0]), bytes.fromhex(body[1]))[()]
        if tag in _READ_PAIRS:
            pairs = [(self._value(key, depth), self._value(item, depth)) for key, item in body]
            return _READ_PAIRS[tag](_apart([key for key, _ in pairs], pairs))
        if tag in _READ_SEQUENCES:
            items = [self._value(item, depth) for item in body]
            return _READ_SEQUENCES[tag](items if tag == "$tuple" else _apart(items, items))
        if tag == "$deque":
            return deque((self._value(item, depth) for item in body[1]), maxlen=body[0])
        if tag in _READ_LEAVES:
            return _READ_LEAVES[tag](body)
        raise self._damaged(f"holds a {tag[:20]!r}, which this version does not know")

    def _get(self, name: Any) -> torch.Tensor:
        if not isinstance(name, str) or name not in self.tensors:
            raise self._damaged(f"names the tensor {str(name)[:100]!r}, which is not in its file")
        tensor = self.tensors[name]
        if name in self.named:
            self.left -= tensor.numel() * tensor.element_size()
            if self.left < 0:
                raise self._damaged(f"names the tensor {name[:100]!r} again and again")
        self.named.add(name)
        return tensor

    def _once(self, name: str, tree: dict[str, Any], make: Callable[[torch.Tensor, Any, Any], Any]) -> Any:
        """What is made of a tensor's bytes, which need a copy: one, however often it is named."""
        tensor = self._get(name)
        read_as = (make, tree["dtype"], tree["shape"])
        found = self.made.get(name)
        if found is None:
            if tensor.dtype != torch.uint8 or tensor.dim() != 1:
                raise ValueError(f"the tensor {name[:100]!r} does not hold bytes")
            found = self.made[name] = read_as, make(tensor, tree["dtype"], tree["shape"])
        if found[0] != read_as:
            raise ValueError(f"the tensor {name[:100]!r} is read in two ways")
        return found[1]

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"The checkpoint's {self.what} {why}; resume from an earlier checkpoint.")


def _viewed(raw: torch.Tensor, dtype: str, shape: list[int]) -> torch.Tensor:
    # Copied: in a mapped file the bytes may begin anywhere, and complex numbers must be aligned.
    return raw.clone().view(_dtype(dtype)).reshape(_lengths(shape))


def _array(raw: torch.Tensor, dtype: str, shape: list[int]) -> Any:
    kind = _numpy_dtype(dtype)
    if math.prod(_lengths(shape)) * kind.itemsize != raw.numel():
        raise ValueError(f"{raw.numel()} bytes are no {kind} of shape {shape}")
    return np.ndarray(shape, kind, np.array(raw.numpy()))


def _lengths(shape: Any) -> list[int]:
    if not isinstance(shape, list) or not all(
        type(length) is int and 0 <= length < 2**63 for length in shape
    ):
        raise ValueError("its shape is no list of lengths")
    return shape


def _apart(keys: list[Any], value: Any) -> Any:
    """`value`, unless most of the keys share a hash: such a dictionary takes for ever to make."""
    if len(keys) > _MANY and len({hash(key) for key in keys}) < len(keys) // 2:
        raise ValueError("its keys are not those of a dictionary")
    return value


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    return _TORCH_DTYPES[name]


def _numpy_dtype(text: str) -> np.dtype[Any]:
    if not isinstance(text, str) or not _NUMPY_DTYPE.fullmatch(text):
        raise ValueError(f"dtype {str(text)[:100]!r}")
    return np.dtype(text)


def _device(text: str) -> torch.device:
    if not isinstance(text, str):  # a number would ask what devices there are
        raise ValueError("it is no text")
    return torch.device(text)


# A table, and not getattr on torch, which imports a module where it is asked for its name.
_TORCH_DTYPES = {
    _dtype_name(found): found for found in vars(torch).values() if isinstance(found, torch.dtype)
}
# Numbers, dates, text and bytes: as numpy writes a plain dtype itself, and neither objects, fields nor subarrays.
_NUMPY_DTYPE = re.compile(r"[<>|=][biufcSUV]\d{1,9}|[<>|=][mM]8(\[\d{0,9}[A-Za-z]{1,7}\])?", re.ASCII)

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
