"""Reading the pickles of a checkpoint of transformers, of which none is executed.

torch's restricted reader makes tensors, numbers, strings and containers. The random state of numpy is an array
beside them. numpy's own reconstruction of one from a pickle trusts what it is given, flags of dtypes included, so it
does not get to see it: what goes by numpy's names here are functions of this file, which make plain numbers and
arrays of them, and refuse all else. What the user has declared safe elsewhere does not count here.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from drivetrain.checkpoint.weights import check_archive
from drivetrain.errors import CheckpointError

_NUMBERS = frozenset("biuf")


class _DType:
    """Stands in for `numpy.dtype`: plain numbers, in either order of bytes."""

    def __init__(self, text: str, *_: Any) -> None:
        found = np.dtype(text) if isinstance(text, str) else None
        if found is None or found.kind not in _NUMBERS:
            raise ValueError(f"a numpy dtype {text!r}")
        self.value = found

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("a numpy dtype with fields")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands in for `numpy.ndarray`: its bytes, checked against its shape."""

    def __init__(self) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = np.frombuffer(_bytes(raw), dtype=dtype.value)
        self.value = self.value.reshape(shape, order="F" if fortran else "C")
        self.value = self.value.astype(self.value.dtype.newbyteorder("="))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, raw: Any) -> Any:
    return np.frombuffer(_bytes(raw), dtype=dtype.value, count=1)[0].item()


def _encode(text: str, codec: str) -> bytes:
    """How a pickle of protocol 2 writes bytes."""
    if codec != "latin1":
        raise ValueError(f"the codec {codec!r}")
    return text.encode("latin1")


def _bytes(raw: Any) -> bytes:
    if not isinstance(raw, bytes):
        raise ValueError("a numpy array that is not made of bytes")
    return raw


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_encode, "_codecs.encode"),
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *(
        (made, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")  # before numpy 2, and since
        for made, name in ((_reconstruct, "_reconstruct"), (_scalar, "scalar"))
    ),
]


def read_pickle(path: str) -> Any:
    """What a file of `torch.save` holds, its tensors on the CPU and mapped from the file.

    Raises:
        CheckpointError: it is missing, damaged, or holds something that only running code would give back.
    """
    if not os.path.isfile(path):  # opening a pipe waits for whoever writes into it
        raise CheckpointError(
            f"The file {path} is missing, or no plain file; resume from another checkpoint."
        )
    check_archive(path)
    try:
        with _only_stand_ins():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged file, or a hostile one, provokes
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks for {asked[1]}" if asked else type(error).__name__
        raise CheckpointError(
            f"The file {path} cannot be read without running code from it ({why}); resume from another checkpoint, "
            "or start a new run from this one's weights."
        ) from error
    return _unwrapped(content)


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _unwrapped(value: Any) -> Any:
    """The arrays in the place of what stood in for them."""
    if isinstance(value, (_Array, _DType)):
        return value.value
    if type(value) in (list, tuple):
        return type(value)(_unwrapped(item) for item in value)
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    return value
