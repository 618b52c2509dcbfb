"""Which device each process takes. How many CUDA devices there are is made up; none is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drivetrain import ConfigurationError, TrainingArguments
from drivetrain_plugins.launcher.devices import check_not_shared, choose
from drivetrain_plugins.launcher.environment import Place


def place(local_rank: int) -> Place:
    return Place(local_rank + 4, 8, local_rank, 4, 1, "node1", 29500)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    def there_are(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


def arguments(**more: Any) -> TrainingArguments:
    return TrainingArguments("out", ddp_backend="gloo", **more)


def test_each_takes_the_device_of_its_number(devices):
    args = arguments()
    devices(4)
    assert choose(place(3), args) == ("gloo", torch.device("cuda", 3))


def test_a_process_that_sees_one_device_takes_it(devices):
    """srun --gpus-per-task=1."""
    args = arguments()
    devices(1)
    assert choose(place(3), args) == ("gloo", torch.device("cuda", 0))


def test_more_processes_than_devices(devices):
    args = arguments()
    devices(2)
    with pytest.raises(ConfigurationError) as caught:
        choose(place(2), args)
    assert str(caught.value) == (
        "Rank 6 is process 2 of its machine (LOCAL_RANK), which has 2 CUDA devices: start at most 2 processes there, or "
        "set use_cpu=True."
    )


def test_use_cpu(devices):
    args = arguments(use_cpu=True)
    devices(2)
    assert choose(place(3), args) == ("gloo", torch.device("cpu"))


def card(rank: int, device: str | None, backend: str = "nccl") -> dict[str, Any]:
    return {"rank": rank, "device": device, "device_name": "cuda:0", "host": "node1", "backend": backend}


def test_two_processes_on_one_device():
    check_not_shared([card(0, "a"), card(1, "b")])
    check_not_shared([card(0, "a", "gloo"), card(1, "a", "gloo")])  # gloo can
    with pytest.raises(ConfigurationError, match="Ranks 0 and 2 both have the CUDA device cuda:0 of node1"):
        check_not_shared([card(0, "a"), card(1, "b"), card(2, "a")])
