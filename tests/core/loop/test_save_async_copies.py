"""The copies of a state that a thread writes: exact, in memory that is kept, and seen by nobody else."""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.checkpoint import CheckpointContents, load_checkpoint, save_checkpoint
from drivetrain.errors import CheckpointError
from drivetrain.host_copies import HostCopies, copied
from drivetrain.slots import TrainState


def state(scale: float = 1.0) -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(600, 700) * scale
    return {
        "weights": OrderedDict(
            w=base,
            tied=base,
            view=base[:, :300],
            turned=base.T,
            repeated=base[:1].expand(4, -1),
            half=base.bfloat16(),
            complex=torch.complex(base[:2], base[2:4]).conj(),
            parameter=torch.nn.Parameter(base.clone()),
            empty=torch.empty(0, 3),
            number=torch.tensor(3),
            flags=torch.tensor([True, False]),
        ),
        "groups": [{"lr": 0.1 * scale, "betas": (0.9, torch.tensor(0.99 * scale)), "params": ["w"]}],
        "loss_scale": None,
    }


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in tensors(item)]


def test_a_copy_is_exact_and_its_own() -> None:
    first = state()
    copy = HostCopies().of(first)
    assert type(copy["weights"]) is OrderedDict
    assert type(copy["groups"][0]["betas"]) is tuple
    assert copy["weights"]["tied"].data_ptr() == copy["weights"]["w"].data_ptr()
    assert copy["weights"]["view"].data_ptr() != copy["weights"]["w"].data_ptr()
    assert not any(tensor.requires_grad for tensor in tensors(copy))
    with torch.no_grad():
        for tensor in first["weights"].values():
            tensor[...].zero_() if tensor is not first["weights"]["repeated"] else None
    for one, other in zip(tensors(copy), tensors(state()), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert one.is_contiguous()
        assert one.data_ptr() % 64 == 0


def test_memory_is_kept_and_what_is_not_needed_is_given_back() -> None:
    copies = HostCopies()
    before = [tensor.data_ptr() for tensor in tensors(copies.of(state()))]
    again = copies.of(state(2.0))
    assert [tensor.data_ptr() for tensor in tensors(again)] == before
    assert all(
        torch.equal(one, other) for one, other in zip(tensors(again), tensors(state(2.0)), strict=True)
    )
    # Gradients come, of another shape, and go.
    more = copies.of({**state(), "gradients": {"w": torch.ones(600, 700)}})
    assert [tensor.data_ptr() for tensor in tensors(more)][:-1] == before
    changed = {**state(), "gradients": {"w": torch.zeros(3)}}
    assert torch.equal(copies.of(changed)["gradients"]["w"], torch.zeros(3))
    copies.of({"little": torch.ones(3)})
    assert [kept.numel() for kept in copies._kept.values()] == [3]


def test_what_is_no_state_is_left_to_who_writes_it() -> None:
    """It is refused in both forms, with the same words."""
    lock, array = threading.Lock(), np.ones(3)
    copy = copied({"lock": lock, "set": {1, 2}, "array": array})
    assert copy["lock"] is lock
    assert copy["set"] == {1, 2}
    assert copy["array"] is not array
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)
    assert copied(sparse).layout == torch.sparse_coo


def test_memory_that_is_not_there_is_said() -> None:
    huge = torch.empty(1).expand(1 << 60)
    with pytest.raises(CheckpointError, match="save_async=True needs"):
        HostCopies().of({"w": huge})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise is Linux's here")
def test_processes_that_are_forked_do_not_get_the_memory() -> None:
    """Else each page that the next save writes to would be copied once more while a DataLoader's workers live."""
    copies = HostCopies()
    address = copies.of({"w": torch.ones(1 << 20)})["w"].data_ptr()

    def is_mapped() -> bool:
        for line in Path("/proc/self/maps").read_text().splitlines():
            begin, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            if begin <= address < end:
                return True
        return False

    assert is_mapped()
    child = os.fork()
    if child == 0:
        os._exit(int(is_mapped()))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_tensors_of_a_device_are_copied_to_locked_memory() -> None:
    on_device = {
        "w": torch.randn(1000, 1000, device="cuda"),
        "step": torch.tensor(1.0),
        "b": torch.ones(3, device="cuda"),
    }
    copies = HostCopies()
    copy = copies.of(on_device)
    assert copy["w"].is_pinned()
    assert not copy["step"].is_pinned()
    address = copy["w"].data_ptr()
    for scale in range(5):
        on_device["w"].fill_(scale)
        copy = copies.of(on_device)
        on_device["w"].add_(1)
        assert torch.equal(copy["w"], torch.full((1000, 1000), float(scale)))
        assert copy["w"].data_ptr() == address
    copies.of({"w": torch.ones(2, device="cuda")})  # what was locked is given back
    torch.cuda.synchronize()


def test_a_checkpoint_of_a_copy_is_that_of_the_state(tmp_path: Path) -> None:
    """With what is tied, and what lies otherwise in memory than it is written."""
    weights = state()["weights"]
    for name, found in (("live", weights), ("copy", copied(weights))):
        save_checkpoint(str(tmp_path / name / "checkpoint-1"), CheckpointContents(TrainState(dict(found))))
    live, copy = (tmp_path / name / "checkpoint-1" for name in ("live", "copy"))
    assert (live / "model.safetensors").read_bytes() == (copy / "model.safetensors").read_bytes()
    read = load_checkpoint(str(copy), 0, 1).train_state
    assert read is not None
    assert all(torch.equal(read.weights[name], weights[name]) for name in weights)
