"""Eight signs in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 8


def packed_size(count: int) -> int:
    """Bytes that so many signs take."""
    return (count + _BITS - 1) // _BITS


def pack(positive: Tensor) -> Tensor:
    """Booleans, as bits in bytes; the last byte is filled up with zeros."""
    flat = positive.flatten()
    filled = flat.new_zeros(packed_size(flat.numel()) * _BITS)
    filled[: flat.numel()] = flat
    places = torch.arange(_BITS, dtype=torch.uint8, device=flat.device)
    return (filled.view(-1, _BITS).to(torch.uint8) << places).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """What was packed, as +1 and -1 in a tensor of that shape."""
    places = torch.arange(_BITS, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> places) & 1
    return bits.flatten()[: shape.numel()].view(shape).float().mul_(2).sub_(1)
