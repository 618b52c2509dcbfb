"""Copies in host memory that training cannot change, in memory that is kept from one copy to the next.

The first copy of a state costs more than the later ones: the system hands out memory page by page, as it is first
touched. So `save_async` keeps what it has: as much as one state takes.
"""

from __future__ import annotations

import copy
import mmap
import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import torch

from drivetrain.errors import CheckpointError

Path: TypeAlias = tuple[Any, ...]
Identity: TypeAlias = tuple[Any, ...]

_ALIGN = 64  # bytes: where a tensor may begin, so that copies run at full speed
_LITTLE = 1 << 20  # bytes that are not worth a piece of memory of their own
_AS_IT_IS = (type(None), bool, int, float, complex, str, bytes)


class HostCopies:
    """Copies of one state after another; a copy lasts until the next one is made.

    Args:
        pin: lock the memory that tensors of a CUDA device are copied to, so that the device copies by itself.
    """

    def __init__(self, pin: bool = True) -> None:
        self._pin = pin
        self._kept: dict[Path, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        """A deep copy whose tensors are in host memory. Tensors that are one memory are one in the copy too.

        A tensor takes the place of the one that stood in the same place of the value before, if it has that one's
        shape and dtype. Memory that has no tensor any more is given back.

        Raises:
            CheckpointError: there is no memory for it.
        """
        found: dict[Identity, tuple[Path, torch.Tensor]] = {}
        for path, tensor in _tensors(value, ()):
            found.setdefault(_identity(tensor), (path, tensor))
        self._make_room(dict(found.values()))
        copies = {identity: self._kept[path] for identity, (path, _) in found.items()}
        streams = set()
        for identity, (_, tensor) in found.items():
            on_cuda = tensor.device.type == "cuda"
            copies[identity].copy_(tensor, non_blocking=on_cuda)
            if on_cuda:
                streams.add(torch.cuda.current_stream(tensor.device))
        for stream in streams:
            stream.synchronize()
        return _with_copies(value, copies)

    def _make_room(self, wanted: dict[Path, torch.Tensor]) -> None:
        """Keeps the memory that fits, and allocates what is missing, in one piece for each kind of device."""
        self._kept = {
            path: kept
            for path, kept in self._kept.items()
            if path in wanted and (kept.shape, kept.dtype) == (wanted[path].shape, wanted[path].dtype)
        }
        for pinned in (False, True):
            missing = {
                path: tensor
                for path, tensor in wanted.items()
                if path not in self._kept and (self._pin and tensor.device.type == "cuda") == pinned
            }
            sizes = [
                -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN for tensor in missing.values()
            ]
            if not missing:
                continue
            parts = torch.split(_memory(max(sum(sizes), 1), pinned), sizes)
            for (path, tensor), part in zip(missing.items(), parts, strict=True):
                of_tensor = part[: tensor.numel() * tensor.element_size()]
                self._kept[path] = of_tensor.view(tensor.dtype).view(tensor.shape)


def copied(value: Any) -> Any:
    """A deep copy whose tensors are in host memory of their own."""
    return HostCopies(pin=False).of(value)


class _Memory(mmap.mmap):
    """Memory straight from the system, to which it goes back at once."""

    locked_at: int | None = None
    process = 0

    def lock(self, address: int, size: int) -> None:
        """Lets a CUDA device copy to it by itself; where that is refused, copies go through the driver's own memory."""
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(address, size, 1)) == 0:
            self.locked_at, self.process = address, os.getpid()

    def __del__(self) -> None:
        if self.locked_at is not None and self.process == os.getpid():
            torch.cuda.cudart().cudaHostUnregister(self.locked_at)  # type: ignore[no-untyped-call]


def _memory(size: int, pinned: bool) -> torch.Tensor:
    """Bytes that nobody has touched.

    Processes that are forked meanwhile, such as those of a DataLoader, do not get them: after a fork each page that
    is written to would be copied once more.
    """
    if size < _LITTLE and not pinned:
        return torch.empty(size, dtype=torch.uint8)
    try:
        if hasattr(mmap, "MAP_ANONYMOUS"):
            memory = _Memory(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            memory = _Memory(-1, size)
    except OSError as error:
        raise CheckpointError(
            f"save_async=True needs {size / 1e6:.0f} MB of host memory for its copy of the state, which is not there: "
            "leave it out."
        ) from error
    for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        with suppress(OSError, AttributeError):  # advice that this system does not know
            memory.madvise(getattr(mmap, advice))
    block = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned:
        memory.lock(block.data_ptr(), size)
    return block


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    kind = type(value)
    if isinstance(value, torch.Tensor):
        if _is_plain(value):
            yield path, value.detach()
    elif kind in (dict, OrderedDict):
        for key, inner in value.items():
            yield from _tensors(inner, (*path, key))
    elif kind in (list, tuple, deque):
        for number, inner in enumerate(value):
            yield from _tensors(inner, (*path, number))


def _with_copies(value: Any, copies: dict[Identity, torch.Tensor]) -> Any:
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if isinstance(value, torch.Tensor):
        if _is_plain(value):
            return copies[_identity(value.detach())]
        return value.detach().to("cpu", copy=True)
    if kind in (dict, OrderedDict):
        return kind((key, _with_copies(inner, copies)) for key, inner in value.items())
    if kind in (list, tuple):
        return kind(_with_copies(inner, copies) for inner in value)
    if kind is deque:
        return deque((_with_copies(inner, copies) for inner in value), value.maxlen)
    try:
        return copy.deepcopy(value)
    except Exception:
        return value  # no checkpoint can hold it, and who writes it says so


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and tensor.device.type != "meta"
    )


def _identity(tensor: torch.Tensor) -> Identity:
    if tensor.numel() == 0:
        return (tensor.device, tensor.shape, tensor.dtype)
    where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
    return (*where, tensor.dtype, tensor.is_conj(), tensor.is_neg())
