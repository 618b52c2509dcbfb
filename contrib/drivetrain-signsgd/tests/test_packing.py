"""Signs in bytes, and out of them."""

from __future__ import annotations

import pytest
import torch
from drivetrain_signsgd.packing import pack, packed_size, unpack


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5), (16, 2, 4), ()])
def test_what_goes_in_comes_out(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed = pack(values > 0)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size(values.numel()) == -(-values.numel() // 8)
    assert torch.equal(unpack(packed, values.shape), values.sign())


def test_the_first_sign_is_the_lowest_bit() -> None:
    assert pack(torch.tensor([True, False, False, False, False, False, False, True, True])).tolist() == [
        129,
        1,
    ]
