"""Parts of the strategy `fsdp` by themselves, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from plugins.strategy.fsdp_model import Hard
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch._subclasses.fake_tensor import FakeTensor

from drivetrain import ConfigurationError
from drivetrain_plugins.strategy.fsdp import elementwise
from drivetrain_plugins.strategy.fsdp.blocks import find_units
from drivetrain_plugins.strategy.fsdp.clipping import ShardedScaler, clip_grad_norm
from drivetrain_plugins.strategy.fsdp.deferred import Deferred, view
from drivetrain_plugins.strategy.fsdp.options import Settings


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_loss_scale_falls_at_an_overflow(group: None) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = ShardedScaler("cpu", init_scale=8.0)
    for gradient, found, scale in ((2.0, 0.0, 8.0), (float("inf"), 1.0, 4.0)):
        scaler.scale(torch.ones(()))
        parameter.grad = torch.full((3,), gradient * scaler.get_scale())
        scaler.unscale_(optimizer)
        assert float(scaler.found) == found
        if not found:
            assert parameter.grad.tolist() == [gradient] * 3
        scaler.update()
        assert scaler.get_scale() == scale


def test_clipping_is_torchs() -> None:
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (), (0,))]
    others = [nn.Parameter(torch.zeros(p.shape)) for p in mine]
    for one, other in zip(mine, others, strict=True):
        one.grad = torch.randn(one.shape)
        other.grad = one.grad.clone()
    mine.append(nn.Parameter(torch.ones(2)))  # has no gradient
    norm = clip_grad_norm([(p, None) for p in mine], 0.5, torch.device("cpu"))
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(others, 0.5))
    for one, other in zip(mine, others, strict=False):
        torch.testing.assert_close(one.grad, other.grad)


class NormScaled(torch.optim.SGD):
    """Steps as long as the parameter is, as LARS and LAMB do."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad *= parameter.detach().norm() / parameter.grad.norm()
        super().step()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad", "RMSprop", "Adamax", "NAdam"])
def test_optimizers_that_work_by_elements(name: str) -> None:
    groups = [{"params": list(Hard().parameters()), "weight_decay": 0.1}]
    elementwise.check(getattr(torch.optim, name), {"lr": 1e-3}, groups)


@pytest.mark.parametrize("cls", [torch.optim.Adafactor, NormScaled])
def test_optimizers_that_do_not(cls: type) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"Optimizer (\w+\.)?{cls.__name__} does not work element by element"
    ):
        elementwise.check(cls, {"lr": 1e-3}, [{"params": list(Hard().parameters())}])
    with pytest.raises(ConfigurationError, match="Muon does not work element by element"):
        elementwise.check(torch.optim.Muon, {"lr": 1e-3}, [{"params": [nn.Parameter(torch.ones(3, 4))]}])


def test_a_model_says_what_must_not_be_split() -> None:
    model = Hard()
    model._no_split_modules = ["LayerNorm", "Foreign"]  # type: ignore[assignment]
    assert list(find_units(model, Settings(auto_wrap=True))) == [f"blocks.{i}.norm" for i in range(3)]


def test_a_tied_block_is_no_unit() -> None:
    model = Hard()
    model.up.weight = nn.Parameter(torch.ones(12, 12))
    model.blocks[1].inner.weight = model.up.weight  # type: ignore[union-attr]
    assert list(find_units(model, Settings(auto_wrap=True))) == ["blocks.0", "blocks.2"]


class Tower(nn.Module):
    """Initialised in every way that comes to mind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16, padding_idx=0)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in self.rates)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("inverse", 1.0 / (10000 ** (torch.arange(0, 16, 2) / 16)), persistent=False)
        self.free = nn.Parameter(torch.randn(3, 4) * 0.02)
        self.square = nn.Parameter(torch.empty(8, 8))
        nn.init.orthogonal_(self.square)
        self.cut = nn.Parameter(torch.empty(5, 5))
        nn.init.trunc_normal_(self.cut)
        self.apply(self._start)
        with torch.no_grad():
            self.layers[0].linear1.weight[2].zero_()
            self.layers[1].linear1.weight.mul_(2)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0, 0.02)


def test_putting_off_gives_the_same_numbers() -> None:
    torch.manual_seed(3)
    real = Tower()
    after = torch.rand(2)
    torch.manual_seed(3)
    with Deferred() as deferred:
        empty = Tower()
    assert all(isinstance(p, FakeTensor) for p in empty.parameters())
    assert empty.rates == real.rates
    assert empty.head.weight is empty.table.weight
    named = dict([*empty.named_parameters(), *empty.named_buffers()])
    places = {name: deferred.recording.place(tensor) for name, tensor in named.items()}
    made: dict[str, torch.Tensor] = {}

    def take(name: str) -> Any:
        return lambda flat: made.__setitem__(name, view(flat, places[name]).clone())

    deferred.recording.play({place.storage: take(name) for name, place in places.items()})
    for name, tensor in [*real.named_parameters(), *real.named_buffers()]:
        assert torch.equal(made[name], tensor), name
    assert torch.equal(torch.rand(2), after)  # what comes later draws what it would have drawn


def test_reading_random_numbers_while_building_is_refused() -> None:
    def build() -> float:
        return float(torch.rand(3).sum())

    with (
        Deferred(),
        pytest.raises(ConfigurationError, match="model_init reads random numbers while it builds"),
    ):
        build()
    assert torch.nn.init._no_grad_trunc_normal_.__module__ == "torch.nn.init"
