"""Tensors in a file, in the safetensors format: a length, a JSON header, the bytes.

Written here rather than by `safetensors.torch.save_file`, so that the bytes go from the tensor's own memory
to the file once, hashed on the way, whichever version of safetensors is installed (older ones copy every
tensor first). Read by safetensors itself, the reference for the format.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import safetensors
import torch

from drivetrain.checkpoint.manifest import Digest, FileRecord
from drivetrain.errors import CheckpointError

DTYPES: dict[torch.dtype, tuple[str, int]] = {
    torch.float64: ("F64", 8),
    torch.int64: ("I64", 8),
    torch.uint64: ("U64", 8),
    torch.float32: ("F32", 4),
    torch.int32: ("I32", 4),
    torch.uint32: ("U32", 4),
    torch.float16: ("F16", 2),
    torch.bfloat16: ("BF16", 2),
    torch.int16: ("I16", 2),
    torch.uint16: ("U16", 2),
    torch.int8: ("I8", 1),
    torch.uint8: ("U8", 1),
    torch.bool: ("BOOL", 1),
    torch.float8_e4m3fn: ("F8_E4M3", 1),
    torch.float8_e5m2: ("F8_E5M2", 1),
}
"""Dtypes that every safetensors since 0.4.3 reads: their name in a header, and bytes an element."""

_CHUNK = 8 << 20  # hashed while it is still in the processor's cache, then written
_ALIGN = 64  # the data begin at a multiple of this, so that a mapped file is read at full speed
_METADATA = "__metadata__"


def nbytes(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes that the tensors take in a file, its header left out; `dtype` as for `write_tensors`."""
    return sum(tensor.numel() * stored_dtype(tensor, dtype).itemsize for tensor in tensors.values())


def stored_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """What a tensor is written as: `dtype` where it holds floating-point numbers, else what it is."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def write_tensors(
    path: str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> FileRecord:
    """Writes a safetensors file and returns its size and checksum.

    Tensors on the CPU that are contiguous are written from where they are; others are copied one at a time.

    Args:
        path: the file.
        tensors: by name.
        metadata: strings for the header.
        dtype: what floating-point tensors are converted to, one at a time; None leaves them.

    Raises:
        CheckpointError: a tensor has a name, a dtype or a value that has no place in the file.
        OSError: the file system refused.
    """
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = dict(metadata)
    dtypes = {name: stored_dtype(tensor, dtype) for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    offset = 0
    for name in names:
        tensor = tensors[name]
        if name == _METADATA or tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise CheckpointError(
                f"The tensor {name!r} ({tensor.dtype}, {tensor.layout}) cannot be stored in "
                "a safetensors file."
            )
        size = tensor.numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": DTYPES[dtypes[name]][0],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    digest = Digest()
    with open(path, "wb", buffering=1 << 20) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in names:
            tensor = _converted(name, tensors[name].detach().to("cpu"), dtypes[name]).contiguous()
            if tensor.numel() == 0:
                continue
            raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            view = memoryview(raw)
            for start in range(0, len(view), _CHUNK):
                chunk = view[start : start + _CHUNK]
                digest.update(chunk)
                file.write(chunk)
    return FileRecord(8 + len(text) + offset, digest.hexdigest())


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    made = tensor.to(dtype)
    if tensor.dtype != dtype and int(made.isinf().sum()) != int(tensor.isinf().sum()):
        raise CheckpointError(
            f"The tensor {name!r} has numbers beyond the largest of {str(dtype).removeprefix('torch.')}, which would "
            "become infinite: choose bf16 or fp32."
        )
    return made


def read_tensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, mapped from it: pages are read when they are used.

    Raises:
        CheckpointError: the file is missing, truncated, or not in the format.
    """
    return _read(path)[0]


def read_tensors_and_metadata(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, and the strings that the header keeps beside them."""
    return _read(path)


def _read(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # OSError, SafetensorError, and what a strange header provokes
        raise CheckpointError(unreadable(path, error)) from error


def read_header(path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype (as the format writes it) and shape of each tensor of a file, without reading the tensors."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except Exception as error:
        raise CheckpointError(unreadable(path, error)) from error


def data_bytes(path: str) -> int:
    """Bytes of the tensors in a file, its header left out.

    Raises:
        CheckpointError: the file is missing, or too short to have a header.
    """
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size - 8 - int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error


def unreadable(path: str, error: Exception) -> str:
    """The sentence for a file that cannot be read."""
    if isinstance(error, FileNotFoundError) or not os.path.lexists(path):
        return f"The file {path} is missing; resume from an earlier checkpoint."
    return f"The file {path} cannot be read ({reason_of(error)}); resume from an earlier checkpoint."


def reason_of(error: BaseException) -> str:
    """What an error says, on one line and not at length: it may quote what is in a file."""
    text = "".join(c if c.isprintable() else " " for c in str(error)[:2000])
    text = re.sub(r"\s+", " ", text).strip().rstrip(".")
    return (text if len(text) <= 300 else text[:300] + "...") or type(error).__name__
