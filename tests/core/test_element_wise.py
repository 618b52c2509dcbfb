"""Which optimizers may be given parts of parameters, found out by trying them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drivetrain.element_wise import is_element_wise


class Normed(torch.optim.Optimizer):
    """Divides each gradient by its norm, as LAMB and its like do."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad / parameter.grad.norm()


class NeedsMore(torch.optim.SGD):
    def __init__(self, params: Any, lr: float) -> None:
        raise RuntimeError("only on a device")


class Blocks(torch.optim.SGD):
    """Elementwise in what it does, and its state is of another shape."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["blocks"] = torch.zeros(3)
        super().step()


class Scaled(torch.optim.Optimizer):
    """Divides each block of gradients by its largest, as a state of few bits is scaled; others are taken as they are."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient.numel() % 256 == 0:
                    blocks = gradient.reshape(-1, 256)
                    gradient = (blocks / blocks.abs().amax(1, keepdim=True)).reshape(gradient.shape)
                parameter -= group["lr"] * gradient


def groups(*dims: int, **options: Any) -> list[dict[str, Any]]:
    return [{"params": [torch.empty((2,) * dim) for dim in dims], **options}]


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        (torch.optim.RMSprop, {"lr": 1e-2}),
        (torch.optim.Adagrad, {"lr": 1e-2}),
        (torch.optim.AdamW, {"lr": 1e-2, "fused": True}),
        (NeedsMore, {"lr": 1e-2}),
    ],
)
def test_element_by_element(cls: Any, kwargs: dict[str, Any]) -> None:
    assert is_element_wise(cls, kwargs, groups(1, 2, 4) + groups(2, weight_decay=0.0))


@pytest.mark.parametrize(
    ("cls", "kwargs", "dims"),
    [
        (torch.optim.Adafactor, {"lr": 1e-2}, (1, 2)),
        (torch.optim.Muon, {"lr": 1e-2}, (2,)),
        (Normed, {}, (1,)),
        (Blocks, {"lr": 1e-2}, (2,)),
        (Scaled, {}, (2,)),
    ],
)
def test_more_than_one_element(cls: Any, kwargs: dict[str, Any], dims: tuple[int, ...]) -> None:
    assert not is_element_wise(cls, kwargs, groups(*dims))


def test_every_group_is_tried() -> None:
    """Muon for the matrices, with AdamW for the rest, in two groups."""
    from drivetrain_plugins.optimizer.muon import MuonWithAdamW

    assert not is_element_wise(
        MuonWithAdamW, {"lr": 1e-2}, groups(2, use_muon=True) + groups(1, use_muon=False)
    )
    assert is_element_wise(torch.optim.SGD, {"lr": 1e-2}, [*groups(2), {"params": []}])
