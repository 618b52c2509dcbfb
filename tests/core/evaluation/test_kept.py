"""What an evaluation keeps: every row once in memory, and the same as if all batches were concatenated."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import drivetrain.kept as kept_module
from drivetrain.errors import DrivetrainError
from drivetrain.gathering import concatenate, nested_numpify
from drivetrain.kept import Kept, Rows


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=12),
    st.sampled_from([(), (3,)]),
    st.integers(1, 300),
)
def test_rows_are_those_of_all_batches_padded(batches: Any, tail: Any, block: int) -> None:
    number = iter(range(10**6))
    arrays = [
        np.array([next(number) for _ in range(rows * width * (tail or (1,))[0])], dtype=np.float32).reshape(
            rows, width, *tail
        )
        for rows, width in batches
    ]
    rows = Rows(padding=-100)
    rows._least = block  # so small that there are many
    for array in arrays:
        rows.add(array)
    whole = rows.array()
    width = max(array.shape[1] for array in arrays)
    assert whole.shape == (sum(map(len, arrays)), width, *tail)
    row = 0
    for array in arrays:
        part = whole[row : row + len(array)]
        assert np.array_equal(part[:, : array.shape[1]], array)
        assert (part[:, array.shape[1] :] == -100).all()
        row += len(array)


def test_nested_results_keep_their_structure() -> None:
    def batch(rows: int, width: int) -> Any:
        return OrderedDict(a=torch.rand(rows, width), b=[torch.arange(rows), (torch.tensor(True),)])

    batches = [batch(2, 3), batch(1, 5), batch(4, 1)]
    kept = Kept("logits")
    for one in batches:
        kept.add(one)
    whole, wanted = kept.array(), concatenate([nested_numpify(one) for one in batches])
    assert type(whole) is OrderedDict
    assert np.array_equal(whole["a"], wanted["a"])
    assert np.array_equal(whole["b"][0], wanted["b"][0])
    assert whole["b"][1][0].tolist() == [True, True, True]
    assert kept.array() is None
    assert Kept("labels").array() is None


def test_numbers_of_several_kinds_become_the_widest() -> None:
    kept = Kept("logits")
    for dtype in (torch.int64, torch.float32, torch.bfloat16):
        kept.add(torch.ones(2, dtype=dtype))
    assert kept.array().dtype == np.float64  # what NumPy makes of int64 and float32


def test_other_structures_and_shapes_are_errors() -> None:
    kept = Kept("logits")
    kept.add((torch.ones(1),))
    with pytest.raises(TypeError, match=r"outputs of different structure: .*'tuple of 1', 'tuple of 2'"):
        kept.add((torch.ones(1), torch.ones(1)))
    kept = Kept("logits")
    kept.add(torch.ones(1, 2, 3))
    kept.add(torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="pad them in preprocess_logits_for_metrics"):
        kept.array()


def test_a_tensor_that_the_model_writes_again_is_kept_as_it_was() -> None:
    kept, buffer = Kept("logits"), torch.zeros(2)
    for value in (1.0, 2.0):
        kept.add(buffer.fill_(value))
    assert kept.array().tolist() == [1, 1, 2, 2]


def resident(name: str) -> int:
    """Bytes, by the system's own count: VmRSS now, or VmHWM, the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be set back here"
)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_peak_is_what_is_kept_and_a_block(ragged: bool) -> None:
    kept = Kept("logits")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = resident("VmRSS")
    for step in range(1000):
        kept.add(torch.zeros(64, 500 + (step % 5 if ragged else 4)))
    whole = kept.array()
    assert whole.nbytes == 1000 * 64 * 504 * 4  # 129 MB
    assert resident("VmHWM") - before < 1.25 * whole.nbytes


def test_what_does_not_fit_is_no_fault_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "_MOST", 2**60)
    kept = Kept("logits")
    kept._shape, rows = 1, Rows(-100)
    rows._least = rows._kept = 2**60
    kept._rows = [rows]
    with pytest.raises(
        DrivetrainError, match="Out of memory with the logits of an evaluation, which are kept"
    ):
        kept.add(torch.ones(1))
