"""The optimizer on sharded parameters: built on them, or a finished one moved to them and back; its state by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from drivetrain.checkpoint import name_parameters, optimizer_state_in
from drivetrain.checkpoint.canonical import NOT_OF_PARAMETERS
from drivetrain.errors import CheckpointError, ConfigurationError
from drivetrain.slots import Group, Model, OptimizerFactory, TrainState
from drivetrain_plugins.strategy.fsdp import elementwise
from drivetrain_plugins.strategy.fsdp.shards import Piece, Receivers, gather, like_holder, part


class Binding:
    """What the optimizer's groups were before the model was sharded, and the optimizer after.

    Args:
        factory: how to build it, or a finished one.
        model: the bare model.

    Raises:
        ConfigurationError: it does not work element by element.
    """

    def __init__(self, factory: OptimizerFactory, model: Model) -> None:
        self.factory = factory
        if factory.finished is not None:
            self.groups: list[Group] = [dict(group) for group in factory.finished.param_groups]
        elif factory.groups is not None:
            self.groups = [dict(group) for group in factory.groups(model)]
        else:
            self.groups = [{"params": list(model.parameters())}]
        for group in self.groups:
            if isinstance(group["params"], Tensor):
                group["params"] = [group["params"]]
        stand_in = cast(Any, SimpleNamespace(param_groups=self.groups))
        self.names = name_parameters(stand_in, model.named_parameters())
        if factory.finished is not None:
            elementwise.check(*_recipe(factory.finished, self.groups))
        else:
            elementwise.check(factory.cls, factory.kwargs, self.groups)

    def build(self, pieces: Mapping[str, Piece]) -> torch.optim.Optimizer:
        """The optimizer, on the tensors that hold the pieces."""
        self.pieces = pieces
        self.holders = self._grouped()
        finished = self.factory.finished
        if finished is not None:
            self.optimizer = finished
            self._move_in()
            return finished
        groups = [{**group, "params": held} for group, held in zip(self.groups, self.holders, strict=True)]
        self.groups = []  # the bare parameters are not kept alive
        self.optimizer = self.factory.cls(groups, **self.factory.kwargs)
        return self.optimizer

    def of_holder(self) -> dict[int, list[Piece]]:
        """The pieces of each holder that the optimizer updates, by the holder's id."""
        found: dict[int, list[Piece]] = {}
        for names in self.names:
            for name in names:
                found.setdefault(id(self.pieces[name].holder), []).append(self.pieces[name])
        return found

    def _grouped(self) -> list[list[Tensor]]:
        """The holders of each group. One of several groups' parameters goes to the first, if their options agree.

        Raises:
            ConfigurationError: they do not.
        """
        where: dict[int, int] = {}
        grouped: list[list[Tensor]] = []
        for number, names in enumerate(self.names):
            grouped.append([])
            for name in names:
                holder = self.pieces[name].holder
                first = where.setdefault(id(holder), number)
                if first != number and not _same_options(self.groups[first], self.groups[number]):
                    raise ConfigurationError(
                        "fsdp_config's use_orig_params=False puts parameters of groups with different options (such as "
                        f"weight decay) into one, {name!r} among them: leave it out, or give all the same options."
                    )
                if all(holder is not found for found in grouped[first]):
                    grouped[first].append(holder)
        return grouped

    # -- a finished optimizer ----------------------------------------------------------------------------

    def _move_in(self) -> None:
        """Puts the finished optimizer, with its state, on the holders; it stays the object it was."""
        optimizer = self.optimizer
        by_name: dict[str, dict[Any, Any]] = {}
        others: dict[Any, Any] = dict(optimizer.state)
        for names, group in zip(self.names, self.groups, strict=True):
            for name, parameter in zip(names, group["params"], strict=True):
                if parameter in others:
                    by_name[name] = others.pop(parameter)
        for group, held in zip(optimizer.param_groups, self.holders, strict=True):
            group["params"][:] = held
        self.groups = []
        moved: dict[Any, Any] = {}
        for pieces in self.of_holder().values():
            entries = [(piece, by_name[piece.name]) for piece in pieces if piece.name in by_name]
            if entries:
                moved[pieces[0].holder] = _held(entries)
        _replace(optimizer.state, {**others, **moved})

    def move_out(self, parameters: Mapping[str, Tensor]) -> None:
        """Puts the optimizer, with its whole state, back on the bare model's parameters. A collective."""
        by_name = self._states(Receivers(everywhere=True), host=False)
        holders = {id(holder) for held in self.holders for holder in held}
        others = {key: value for key, value in self.optimizer.state.items() if id(key) not in holders}
        for group, names in zip(self.optimizer.param_groups, self.names, strict=True):
            group["params"][:] = [parameters[name] for name in names]
        _replace(self.optimizer.state, {**others, **{parameters[name]: by_name[name] for name in by_name}})

    def let_go(self, parameters: Mapping[str, Tensor]) -> None:
        """Puts the optimizer on the bare model's parameters without any state of them."""
        for group, names in zip(self.optimizer.param_groups, self.names, strict=True):
            group["params"][:] = [parameters[name] for name in names]
        self.optimizer.state.clear()

    # -- the state by name -------------------------------------------------------------------------------

    def _states(self, to: Receivers, host: bool = True) -> dict[str, dict[str, Any]]:
        """The whole state by parameter name, of the parameters that this rank receives. A collective."""
        mine: dict[str, dict[str, tuple[str, Any]]] = {}
        entries: dict[str, dict[str, Any]] = {}
        for pieces in self.of_holder().values():
            holder = pieces[0].holder
            entry = self.optimizer.state.get(holder)
            if not entry:
                continue
            for piece in pieces:
                begin, end = piece.span
                if begin == end and piece.numel:
                    continue  # optimizers pass by what has no element here, and what they count stands still
                entries[piece.name] = entry
                mine[piece.name] = {key: _described(piece, value) for key, value in entry.items()}
        told: list[dict[str, dict[str, tuple[str, Any]]]] = [mine]
        if dist.get_world_size() > 1:
            told = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(told, mine)
        found: dict[str, dict[str, Any]] = {}
        for name in (name for names in self.names for name in names):
            # A rank that keeps nothing of a parameter may have no state of it either.
            described = next((of_rank[name] for of_rank in told if name in of_rank), None)
            if described is None:
                continue
            piece = self.pieces[name]
            state: dict[str, Any] = {}
            for key, (kind, about) in described.items():
                if kind == "part":
                    held = entries.get(name, {}).get(key)
                    begin, end = piece.span
                    elements = (
                        part(piece, held)
                        if held is not None
                        else torch.zeros(end - begin, dtype=about, device=piece.holder.device)
                    )
                    state[key] = gather(piece, elements, to, host)
                else:
                    state[key] = _copied(entries[name][key], host) if name in entries else about
            if to.owners is None or to.keeps(piece):
                found[name] = state
        return found

    def state_out(self, to: Receivers) -> tuple[dict[str, dict[str, Any]], list[Group], dict[str, Any]]:
        """The state by name, the groups with names, and what else the optimizer's state_dict holds. A collective."""
        states = self._states(to)
        saved = self.optimizer.state_dict()
        groups = [
            {
                **{key: _copied(value) for key, value in group.items() if key != "params"},
                "params": list(names),
            }
            for group, names in zip(saved["param_groups"], self.names, strict=True)
        ]
        extra = {key: _copied(value) for key, value in saved.items() if key not in ("state", "param_groups")}
        numbers = {number for group in saved["param_groups"] for number in group["params"]}
        strangers = {key: _copied(value) for key, value in saved["state"].items() if key not in numbers}
        if strangers:
            extra[NOT_OF_PARAMETERS] = strangers
        return states, groups, extra

    def state_in(self, state: TrainState) -> None:
        """Sets this rank's part of a whole state.

        Raises:
            CheckpointError: its groups or names are others, or it is not of whole elements.
        """
        keys: dict[int, str] = {}
        optimizer: dict[str, dict[str, Any]] = {}
        weights: dict[str, Tensor] = {}
        named: dict[str, Tensor] = {}
        known = {name for names in self.names for name in names}
        foreign = {name: entry for name, entry in state.optimizer.items() if name not in known}
        for pieces in self.of_holder().values():
            key = pieces[0].name
            keys[id(pieces[0].holder)] = key
            named[key] = pieces[0].holder
            if key in state.weights:
                weights[key] = state.weights[key]
            entries = [
                (piece, state.optimizer[piece.name]) for piece in pieces if piece.name in state.optimizer
            ]
            if entries:
                optimizer[key] = _held(entries)
        groups = state.groups
        if len(named) < len(known):  # several in one: the names are compared here, as they are not in there
            if [sorted(group["params"]) for group in groups] != [sorted(names) for names in self.names]:
                raise CheckpointError(
                    "The checkpoint's optimizer has other parameter groups than this one; resume with the same groups."
                )
            held = [[keys[id(holder)] for holder in holders] for holders in self.holders]
            groups = [{**group, "params": names} for group, names in zip(groups, held, strict=True)]
        local = TrainState(
            weights=weights,
            optimizer={**optimizer, **foreign},
            groups=groups,
            optimizer_extra=state.optimizer_extra,
        )
        optimizer_state_in(self.optimizer, named.items(), local)


def _held(entries: Sequence[tuple[Piece, Mapping[str, Any]]]) -> dict[str, Any]:
    """The state of a holder, of the whole states of its pieces."""
    made: dict[str, Any] = {}
    for key, value in entries[0][1].items():
        piece = entries[0][0]
        if (
            isinstance(value, DTensor)
            or not isinstance(value, Tensor)
            or piece.group is None
            or value.numel() == 1 != piece.numel
        ):
            made[key] = value
            continue
        if piece.numel == 1 and value.dim() == 0:
            made[key] = value  # a count of steps, beside a parameter of one element
            continue
        for other, entry in entries:
            if not isinstance(entry.get(key), Tensor) or entry[key].shape != other.shape:
                raise CheckpointError(
                    f"The optimizer's {key!r} of {other.name!r} is not of the parameter's shape, so that strategy "
                    "'fsdp' cannot split it: resume with the strategy that wrote it."
                )
        made[key] = like_holder([(other, entry[key]) for other, entry in entries])
    return made


def _described(piece: Piece, value: Any) -> tuple[str, Any]:
    if (
        isinstance(value, Tensor)
        and piece.group is not None
        and value.shape == piece.holder.shape
        and value.dim()
    ):
        return "part", value.dtype
    return "value", _copied(value)


def _copied(value: Any, host: bool = True) -> Any:
    """A copy that does not change with the optimizer."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value.clone() if not host or value.device.type == "cpu" else value.cpu()
    if type(value) is dict:
        return {key: _copied(item, host) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, host) for item in value)
    return value


def _same_options(one: Group, other: Group) -> bool:
    keys = (one.keys() | other.keys()) - {"params"}
    return all(one.get(key) == other.get(key) for key in keys)


def _replace(state: Any, by: Mapping[Any, Any]) -> None:
    state.clear()
    state.update(by)


def _recipe(optimizer: torch.optim.Optimizer, groups: list[Group]) -> tuple[Any, dict[str, Any], list[Group]]:
    """Class, keyword arguments and groups that would build an optimizer like a finished one."""
    from drivetrain.parameters import group_options

    known = group_options(type(optimizer))
    defaults = {key: value for key, value in optimizer.defaults.items() if known is None or key in known}
    cleaned = [
        {key: v for key, v in group.items() if key == "params" or key in optimizer.defaults}
        for group in groups
    ]
    return type(optimizer), defaults, cleaned
