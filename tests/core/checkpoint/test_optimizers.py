"""The canonical form of an optimizer: out, into files, back into a new one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.checkpoint import (
    CheckpointContents,
    load_checkpoint,
    name_parameters,
    optimizer_state_in,
    optimizer_state_out,
    save_checkpoint,
    set_gradients,
)
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def network(matrices: bool = False, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8, bias=not matrices), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=not matrices)
    ).to(dtype)


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    named = list(model.named_parameters())
    state, groups, extra = optimizer_state_out(optimizer, named)
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    return TrainState(dict(model.state_dict()), state, groups, gradients, None, extra)


def through_files(folder: Path, state: TrainState) -> TrainState:
    save_checkpoint(str(folder / "checkpoint-1"), CheckpointContents(train_state=state))
    back = load_checkpoint(str(folder / "checkpoint-1")).train_state
    assert back is not None
    return back


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(count):
        x = torch.randn(4, 6, generator=generator).to(dtype)

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adamw_foreach_amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True, amsgrad=True),
    "adamw_tensor_lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "adam_capturable_off": lambda p: torch.optim.Adam(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4),
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, "muon"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    muon = name == "muon"
    make: Make = (lambda p: torch.optim.Muon(p, lr=1e-2)) if muon else OPTIMIZERS[name]
    model = network(matrices=muon)
    optimizer = make(list(model.parameters()))
    steps(model, optimizer, 3, seed=1)
    back = through_files(tmp_path, state_of(model, optimizer))

    other = network(matrices=muon)
    resumed = make(list(other.parameters()))
    other.load_state_dict(back.weights)
    optimizer_state_in(resumed, other.named_parameters(), back)
    assert identical(optimizer.state_dict(), resumed.state_dict())

    steps(model, optimizer, 3, seed=2)
    steps(other, resumed, 3, seed=2)
    assert identical(dict(model.state_dict()), dict(other.state_dict()))
    assert identical(optimizer.state_dict(), resumed.state_dict())


def test_several_groups_keep_their_options_and_their_order(tmp_path: Path) -> None:
    model = network()
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": biases, "weight_decay": 0.0, "lr": 0.5}, {"params": weights, "mark": ("a", 1)}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    steps(model, optimizer, 2, seed=1)
    back = through_files(tmp_path, state_of(model, optimizer))
    assert [group["params"] for group in back.groups] == [["0.bias", "2.bias"], ["0.weight", "2.weight"]]
    assert back.groups[1]["mark"] == ("a", 1)

    other = network()
    reordered = [[p for p in reversed(list(other.parameters())) if p.ndim == n] for n in (1, 2)]
    resumed = torch.optim.AdamW([{"params": reordered[0]}, {"params": reordered[1]}], lr=9.0)
    optimizer_state_in(resumed, other.named_parameters(), back)
    assert [group["lr"] for group in resumed.param_groups] == [0.5, 1e-2]
    first = optimizer.state[model[0].weight]["exp_avg"]  # type: ignore[index]
    assert torch.equal(resumed.state[other[0].weight]["exp_avg"], first)  # type: ignore[index]


def test_a_parameter_that_never_had_a_gradient_has_no_state(tmp_path: Path) -> None:
    model = network()
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps(model, optimizer, 2, seed=1)
    back = through_files(tmp_path, state_of(model, optimizer))
    assert "0.weight" not in back.optimizer
    assert "0.weight" in back.groups[0]["params"]
    other = network()
    resumed = torch.optim.AdamW(other.parameters(), lr=1e-2)
    optimizer_state_in(resumed, other.named_parameters(), back)
    assert other[0].weight not in resumed.state  # type: ignore[index]


def test_names_that_look_like_paths_stay_apart(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number, name in enumerate(["a", "a/exp_avg", "a%2Fexp_avg", "é\n$x", "/etc/up"]):
                self.register_parameter(name, torch.nn.Parameter(torch.full((2,), float(number))))

    model = Odd()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sum((p * (n + 1)).sum() for n, p in enumerate(model.parameters())).backward()  # type: ignore[union-attr]
    optimizer.step()
    back = through_files(tmp_path, state_of(model, optimizer))
    other = Odd()
    resumed = torch.optim.AdamW(other.parameters(), lr=1e-2)
    optimizer_state_in(resumed, other.named_parameters(), back)
    assert identical(optimizer.state_dict(), resumed.state_dict())


def test_a_tied_parameter_is_saved_under_its_first_name() -> None:
    model = network()
    model.register_module("alias", model[0])  # type: ignore[index]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    named = list(model.named_parameters(remove_duplicate=False))
    assert len(named) == 6
    assert name_parameters(optimizer, named) == [["0.weight", "0.bias", "2.weight", "2.bias"]]
    optimizer_state_in(optimizer, named, state_of(model, optimizer))


def test_fused_kernels_get_state_with_the_strides_of_their_parameter(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        made = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made, torch.optim.AdamW(made.parameters(), lr=1e-2, fused=True)

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, backward: bool, step: bool) -> None:
        torch.manual_seed(5)
        if backward:
            model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        if step:
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = build()
    train(model, optimizer, True, True)
    train(model, optimizer, True, False)
    back = through_files(tmp_path, state_of(model, optimizer))
    other, resumed = build()
    other.load_state_dict(back.weights)
    optimizer_state_in(resumed, other.named_parameters(), back)
    set_gradients(other.named_parameters(), back.gradients)
    assert other.weight.grad.stride() == other.weight.stride()  # type: ignore[union-attr, operator]
    assert resumed.state[other.weight]["exp_avg"].stride() == other.weight.stride()  # type: ignore[index, union-attr, operator]
    for _ in range(2):
        train(model, optimizer, True, True)
        train(other, resumed, True, True)
    assert identical(dict(model.state_dict()), dict(other.state_dict()))


class KeepsFloat32(torch.optim.Optimizer):
    """Momentum in float32, whatever the parameters are."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "name": "keeps"})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p, dtype=torch.float32))
                average.mul_(0.9).add_(p.grad.float())
                self.state[p]["word"] = "some"
                p.data.sub_(average.to(p.dtype), alpha=group["lr"])


def test_float32_state_of_bfloat16_parameters_keeps_its_digits(tmp_path: Path) -> None:
    model = network(dtype=torch.bfloat16)
    optimizer = KeepsFloat32(model.parameters())
    steps(model, optimizer, 3, seed=1)
    back = through_files(tmp_path, state_of(model, optimizer))
    other = network(dtype=torch.bfloat16)
    other.load_state_dict(back.weights)
    resumed = KeepsFloat32(other.parameters())
    optimizer_state_in(resumed, other.named_parameters(), back)
    assert identical(optimizer.state_dict(), resumed.state_dict())


def test_state_follows_a_parameter_whose_dtype_has_changed() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps(model, optimizer, 1, seed=1)
    other = network(dtype=torch.bfloat16)
    resumed = torch.optim.AdamW(other.parameters(), lr=1e-2)
    optimizer_state_in(resumed, other.named_parameters(), state_of(model, optimizer))
    assert resumed.state[other[0].weight]["exp_avg"].dtype == torch.bfloat16  # type: ignore[index]
    steps(other, resumed, 1, seed=1)


def test_how_an_update_is_computed_stays_with_the_optimizer_at_hand() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    steps(model, optimizer, 1, seed=1)
    resumed = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    optimizer_state_in(resumed, model.named_parameters(), state_of(model, optimizer))
    assert not resumed.param_groups[0]["fused"]
    assert resumed.param_groups[0]["foreach"] is False


def test_a_tensor_rate_stays_the_kind_that_the_optimizer_has() -> None:
    model = network()
    tensor = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5))
    number = torch.optim.AdamW(model.parameters(), lr=0.25)
    from_number, from_tensor = state_of(model, number), state_of(model, tensor)
    optimizer_state_in(tensor, model.named_parameters(), from_number)
    optimizer_state_in(number, model.named_parameters(), from_tensor)
    assert isinstance(tensor.param_groups[0]["lr"], torch.Tensor)
    assert float(tensor.param_groups[0]["lr"]) == 0.25
    assert number.param_groups[0]["lr"] == 0.5
    assert isinstance(number.param_groups[0]["lr"], float)


def test_the_state_that_was_given_does_not_change_with_the_optimizer() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps(model, optimizer, 1, seed=1)
    named = list(model.named_parameters())
    state, groups, extra = optimizer_state_out(optimizer, named, copy_tensors=True)
    kept = TrainState({}, state, groups, optimizer_extra=extra)
    before = {(name, key): value.clone() for name, entry in state.items() for key, value in entry.items()}
    steps(model, optimizer, 2, seed=3)  # goes on from where the state was taken
    for _ in range(2):
        optimizer_state_in(optimizer, named, kept)
        steps(model, optimizer, 2, seed=2)
    assert all(torch.equal(kept.optimizer[name][key], value) for (name, key), value in before.items())
    assert {key for _, key in before} == {"step", "exp_avg", "exp_avg_sq"}


def test_state_of_no_parameter_is_kept(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.state["outer"] = {"round": 3, "average": torch.ones(2)}  # type: ignore[index]
    back = through_files(tmp_path, state_of(model, optimizer))
    resumed = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer_state_in(resumed, model.named_parameters(), back)
    assert resumed.state["outer"]["round"] == 3  # type: ignore[index]


# -- errors, one sentence each, naming the parameter --------------------------------------------------------


def refused(optimizer: torch.optim.Optimizer, model: torch.nn.Module, state: TrainState) -> str:
    with pytest.raises(CheckpointError) as caught:
        optimizer_state_in(optimizer, model.named_parameters(), state)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_errors_name_the_parameter() -> None:
    model = network()
    everything = list(model.parameters())
    whole = torch.optim.SGD(everything, lr=1.0)
    part = torch.optim.SGD(everything[:-1], lr=1.0)
    two = torch.optim.SGD([{"params": everything[:2]}, {"params": everything[2:]}], lr=1.0)
    assert "'2.bias', of which the checkpoint has no optimizer state" in refused(
        whole, model, state_of(model, part)
    )
    assert "'2.bias', which this optimizer does not hold" in refused(part, model, state_of(model, whole))
    assert "'2.weight' is in group 1 of the checkpoint's optimizer and in group 0" in refused(
        whole, model, state_of(model, two)
    )
    stranger = torch.optim.SGD([*everything, torch.nn.Parameter(torch.ones(2, 5))], lr=1.0)
    with pytest.raises(CheckpointError, match=r"group 0 holds at position 4 a tensor of shape \(2, 5\)"):
        state_of(model, stranger)
    whole.param_groups.append({**whole.param_groups[0], "params": everything[:1]})
    with pytest.raises(CheckpointError, match=r"'0.weight' twice, in group 0 and in group 1"):
        state_of(model, whole)


def test_state_outside_of_the_groups_is_an_error() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    steps(model, optimizer, 1, seed=1)
    state = state_of(model, optimizer)
    state.optimizer["ghost"] = {"momentum_buffer": torch.ones(1)}
    assert "'ghost', which is in none of its groups" in refused(optimizer, model, state)
