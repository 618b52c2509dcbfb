"""How small and how large the numbers of tensors are: measured where the tensors lie, and read together."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class Magnitude:
    """What was measured of a tensor.

    Attributes:
        name: what the tensor is to its module: `weight`, `input[0]`, `output.logits`.
        shape, dtype: of the tensor, for people.
        measured: least absolute value, least and largest value, on the tensor's device; None once it is read.
        smallest, low, high: the same, once it is read; NaN where one of the numbers is NaN.
    """

    name: str
    shape: str
    dtype: str
    measured: Tensor | None
    smallest: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high)) if self.low == self.low else self.low

    @property
    def is_finite(self) -> bool:
        """Whether every number is one."""
        return abs(self.largest) < float("inf")

    @property
    def fault(self) -> str:
        """What is wrong with it, in a word."""
        return "NaN" if self.largest != self.largest else "Infinity"


def measure(name: str, tensor: Tensor) -> Magnitude | None:
    """Measures a tensor, without waiting for its device; None where there is nothing to measure."""
    found: Any = tensor.detach()
    if hasattr(found, "to_local"):
        found = found.to_local()
    if found.layout != torch.strided:
        found = found.coalesce().values() if found.layout == torch.sparse_coo else found.values()
    if found.numel() == 0 or found.dtype == torch.bool or found.device.type == "meta":
        return None
    dtype = str(found.dtype).removeprefix("torch.")
    if found.is_complex():
        found = torch.view_as_real(found)
    if found.is_floating_point() and found.element_size() == 1:
        found = found.float()  # torch finds no extremes in 8 bits
    low, high = torch.aminmax(found)
    wide = torch.float64 if found.dtype == torch.float64 else torch.float32
    measured = torch.stack((found.abs().amin().to(wide), low.to(wide), high.to(wide)))
    return Magnitude(name, "x".join(map(str, tensor.shape)) or "1", dtype, measured)


def read(magnitudes: Sequence[Magnitude]) -> None:
    """Reads what was measured: one wait for each device."""
    waiting: dict[tuple[torch.device, torch.dtype], list[Magnitude]] = defaultdict(list)
    for magnitude in magnitudes:
        if magnitude.measured is not None:
            waiting[magnitude.measured.device, magnitude.measured.dtype].append(magnitude)
    for found in waiting.values():
        rows = torch.stack([magnitude.measured for magnitude in found if magnitude.measured is not None])
        for magnitude, (smallest, low, high) in zip(found, rows.tolist(), strict=True):
            magnitude.smallest, magnitude.low, magnitude.high = smallest, low, high
            magnitude.measured = None


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a module's inputs or outputs, by a name that says where in them it is."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors_in(entry, f"{name}.{key}")
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key, entry in zip(value._fields, value, strict=True):
            yield from tensors_in(entry, f"{name}.{key}")
    elif isinstance(value, (tuple, list)):
        for position, entry in enumerate(value):
            yield from tensors_in(entry, f"{name}[{position}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name, None), f"{name}.{field.name}")
