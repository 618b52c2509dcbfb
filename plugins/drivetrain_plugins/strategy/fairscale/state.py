"""The canonical state of an optimizer whose parameters' states each lie whole on one rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from drivetrain.checkpoint import optimizer_state_in, optimizer_state_out
from drivetrain.checkpoint.canonical import OptimizerOut
from drivetrain.slots import TrainState
from drivetrain_plugins.strategy.fairscale.rebuild import OWN_OPTIONS, real


class _Shard:
    """An OSS as a plain optimizer of all groups that has state for this rank's own parameters alone."""

    def __init__(self, oss: Any) -> None:
        self.oss = oss
        self.param_groups = [
            {**_own(oss, number), "params": real(group["params"])}
            for number, group in enumerate(oss.param_groups)
        ]
        self.state = oss.optim.state
        numbers: dict[int, int] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                numbers[id(parameter)] = len(numbers)
        own = [parameter for group in oss.optim.param_groups for parameter in group["params"]]
        # Of the shard's optimizer to the numbers among all parameters; a placeholder has none.
        self.number = {local: numbers.get(id(parameter), -1) for local, parameter in enumerate(own)}

    def state_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = self.oss.optim.state_dict()
        position = 0
        groups = []
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(position, position + count))})
            position += count
        state = {self.number.get(key, key): value for key, value in saved["state"].items()}
        return {**saved, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        local = {number: key for key, number in self.number.items()}
        state = {local.get(key, key): value for key, value in state_dict["state"].items()}
        groups = []
        for group, mine in zip(
            state_dict["param_groups"], self.oss.optim.state_dict()["param_groups"], strict=True
        ):
            groups.append({**group, "params": mine["params"]})
        self.oss.optim.load_state_dict({**state_dict, "state": state, "param_groups": groups})
        for group, mine in zip(self.oss.param_groups, self.oss.optim.param_groups, strict=True):
            group.update({key: value for key, value in mine.items() if key != "params"})
        self.state = self.oss.optim.state


def _own(oss: Any, number: int) -> dict[str, Any]:
    """A group without the options that OSS filled in."""
    group, known = oss.param_groups[number], getattr(oss, OWN_OPTIONS)
    if number >= len(known):  # added since
        return {**group}
    return {key: value for key, value in group.items() if key in known[number] or key not in oss.defaults}


def _shard(oss: Any) -> torch.optim.Optimizer:
    """Named as the optimizer that is sharded, as messages name it."""
    return cast(torch.optim.Optimizer, type(type(oss.optim).__name__, (_Shard,), {})(oss))


def sharded_state_out(
    oss: Any, named: Iterable[tuple[str, Tensor]], device: torch.device, receivers: Iterable[int] = (0,)
) -> OptimizerOut:
    """The whole state by name on the ranks that receive it, and on the others their own part. A collective.

    Args:
        oss: FairScale's OSS.
        named: the bare model's parameters.
        device: what the process group communicates from.
        receivers: the ranks that get the whole.

    Returns:
        As `optimizer_state_out`.
    """
    states, groups, extra = optimizer_state_out(_shard(oss), named)
    rank, size = dist.get_rank(), dist.get_world_size()
    tensors: list[Tensor] = []
    tree = _taken(states, tensors)
    for receiver in receivers:
        trees: list[Any] = [None] * size
        dist.gather_object(tree, trees if rank == receiver else None, dst=receiver)
        if rank != receiver:
            for tensor in tensors:
                if tensor.numel():
                    dist.send(_bytes(tensor).to(device), dst=receiver)
            continue
        for sender in range(size):
            if sender != rank:
                states.update(_received(trees[sender], sender, device))
    order = [name for group in groups for name in group["params"]]
    return {name: states[name] for name in order if name in states}, groups, extra


def sharded_state_in(oss: Any, named: Iterable[tuple[str, Tensor]], saved: TrainState) -> None:
    """Sets groups, and the state of this rank's own parameters, of which alone copies are made.

    Raises:
        CheckpointError: as `optimizer_state_in`, on every rank alike.
    """
    named = list(named)
    own = {id(parameter) for group in oss.optim.param_groups for parameter in group["params"]}
    elsewhere = {name for name, parameter in named if id(parameter) not in own}
    mine = TrainState(
        weights=saved.weights,
        optimizer={name: entry for name, entry in saved.optimizer.items() if name not in elsewhere},
        groups=saved.groups,
        optimizer_extra=saved.optimizer_extra,
    )
    optimizer_state_in(_shard(oss), named, mine)


@dataclass(frozen=True)
class _Sent:
    """In a tree, the place of a tensor that follows by itself."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _taken(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Sent(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _taken(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_taken(item, tensors) for item in value)
    return value


def _received(value: Any, sender: int, device: torch.device) -> Any:
    if isinstance(value, _Sent):
        found = torch.empty(value.shape, dtype=value.dtype)
        if found.numel():
            raw = torch.empty(_bytes(found).shape, dtype=torch.uint8, device=device)
            dist.recv(raw, src=sender)
            _bytes(found).copy_(raw)
        return found
    if isinstance(value, dict):
        return {key: _received(item, sender, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_received(item, sender, device) for item in value)
    return value


def _bytes(tensor: Tensor) -> Tensor:
    """A view of a contiguous tensor's bytes, which every backend can send whatever the dtype."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
