"""The optimizer's state by parameter name, out of the flat rows of ZeRO and into them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drivetrain.checkpoint.canonical import HOW_NOT_WHAT
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState
from drivetrain_plugins.strategy.deepspeed.pieces import Pieces, shape_of

# DeepSpeed's own Adams: their numbers are torch's, their bookkeeping is not.
_OWN_ADAMS = ("DeepSpeedCPUAdam", "FusedAdam")
_TORCH_ADAM = {
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
}  # fmt: skip


def state_out(pieces: Pieces, named: dict[str, Any], keep: bool) -> dict[str, dict[str, Any]]:
    """Name -> key -> tensor or number. A collective.

    Args:
        pieces: of this process.
        named: the parameters of the bare model by name, each once.
        keep: whether this process wants them; the others only take part.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    pieces.relink()  # DeepSpeed links all groups after its first step of the first, when others have no state yet
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in named.items():
        flat = pieces.flat_of(parameter)
        if flat is None:
            continue
        row, entry = pieces.rows[flat], {}
        for key, value in pieces.state(flat).items():
            if isinstance(value, Tensor) and value.shape == row.shape:
                whole = safe_get_full_optimizer_state(parameter, key)
                entry[key] = whole.to("cpu", copy=True) if keep else None
            else:
                entry[key] = _counted(key, value)
        if entry and keep:
            found[name] = entry
    return found


def _counted(key: str, value: Any) -> Any:
    """A number of the state as torch's optimizers keep it: counters of steps are tensors there."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return torch.tensor(float(value)) if key == "step" else copy.deepcopy(value)


def counted_as_torch(
    states: dict[str, dict[str, Any]], names: Sequence[Sequence[str]], inner: Any
) -> dict[str, dict[str, Any]]:
    """The state of whole parameters with the counters that torch's optimizers have.

    DeepSpeed's fused Adam updates all parameters of a group at once, and counts for the last of them alone.
    """
    found = {
        name: {key: _counted(key, value) if key == "step" else value for key, value in entry.items()}
        for name, entry in states.items()
    }
    if type(inner).__name__ in _OWN_ADAMS:
        for of_group in names:
            entries = [found[name] for name in of_group if name in found]
            steps = [entry["step"] for entry in entries if "step" in entry]
            for entry in entries if steps else ():
                entry["step"] = max(steps).clone()
    return found


def counts_in_its_own_way(inner: torch.optim.Optimizer) -> bool:
    """Whether it is one of DeepSpeed's own Adams, which count in whole numbers."""
    return type(inner).__name__ in _OWN_ADAMS


def count_in_its_own_way(inner: torch.optim.Optimizer) -> None:
    """Has DeepSpeed's own Adams count in whole numbers again."""
    if counts_in_its_own_way(inner):
        for state in inner.state.values():
            if "step" in state:
                state["step"] = int(state["step"])


def groups_out(
    groups: Sequence[dict[str, Any]], names: Sequence[Sequence[str]], inner: Any
) -> list[dict[str, Any]]:
    """The options of each group, and the names of its parameters."""
    own_adam = type(inner).__name__ in _OWN_ADAMS
    found = []
    for group, of_group in zip(groups, names, strict=True):
        options = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "step")}
        if own_adam:
            options.pop("bias_correction", None)
            decoupled = bool(getattr(inner, "adam_w_mode", True))
            options = {**_TORCH_ADAM, "decoupled_weight_decay": decoupled, **options}
        found.append({**options, "params": list(of_group)})
    return found


def groups_in(
    groups: Sequence[dict[str, Any]], names: Sequence[Sequence[str]], inner: Any, saved: TrainState
) -> None:
    """Sets the options of each group.

    Raises:
        CheckpointError: other groups, other parameters, or another optimizer.
    """
    _compare(names, [group["params"] for group in saved.groups])
    own_adam = type(inner).__name__ in _OWN_ADAMS
    for group, stored in zip(groups, saved.groups, strict=True):
        foreign = stored.keys() - group.keys() - {"initial_lr"}
        lacking = sorted(
            group.keys() - stored.keys() - {"initial_lr", "bias_correction", "step", *HOW_NOT_WHAT}
        )
        if foreign and lacking and not own_adam:
            raise CheckpointError(
                f"The checkpoint was written by another optimizer than {type(inner).__name__}: it has no "
                f"{lacking[0]!r}; resume with the optimizer that its run.json names."
            )
        for key, value in stored.items():
            if key != "params" and key not in HOW_NOT_WHAT and (key in group or key == "initial_lr"):
                group[key] = copy.deepcopy(value)


def _compare(live: Sequence[Sequence[str]], saved: Sequence[Sequence[str]]) -> None:
    of_live = {name: number for number, group in enumerate(live) for name in group}
    of_saved = {name: number for number, group in enumerate(saved) for name in group}
    for one, other, said in (
        (
            of_live,
            of_saved,
            "The optimizer has the parameter {!r}, of which the checkpoint has no optimizer state",
        ),
        (of_saved, of_live, "The checkpoint has optimizer state of {!r}, which this optimizer does not hold"),
    ):
        missing = [name for name in one if name not in other]
        if missing:
            raise CheckpointError(
                f"{said.format(missing[0])}; resume with the parameters that were trained, or start a new run from "
                "the checkpoint's weights."
            )
    moved = [name for name, number in of_live.items() if of_saved[name] != number]
    if moved or len(live) != len(saved):
        what = (
            f"The parameter {moved[0]!r} is in another group" if moved else "There are more or fewer groups"
        )
        raise CheckpointError(f"{what} than in the checkpoint's optimizer; resume with the same groups.")


def state_in(pieces: Pieces, named: dict[str, Any], saved: TrainState) -> None:
    """Puts the state in place, of every parameter the elements that this process holds.

    Raises:
        CheckpointError: parameters of one flat row have taken different numbers of steps, or a shape differs.
    """
    members: dict[int, list[str]] = {}
    for name, parameter in named.items():
        flat = pieces.flat_of(parameter)
        if flat is not None:
            members.setdefault(flat, []).append(name)
    for flat, row in enumerate(pieces.rows):
        entries = {name: saved.optimizer[name] for name in members.get(flat, ()) if name in saved.optimizer}
        state = pieces.zero.optimizer.state[row]
        like = dict(state)
        state.clear()
        for name, entry in entries.items():
            shape = shape_of(named[name])
            piece = pieces.of(named[name])
            for key, value in entry.items():
                if isinstance(value, Tensor) and value.dim() and value.shape == shape:
                    if key not in state:
                        dtype = like[key].dtype if isinstance(like.get(key), Tensor) else row.dtype
                        state[key] = torch.zeros_like(row, dtype=dtype, requires_grad=False)
                    if piece is not None:
                        piece.of_row(state[key]).copy_(piece.of_whole(value))
                elif isinstance(value, Tensor) and value.dim():
                    raise CheckpointError(
                        f"The checkpoint's optimizer state {key!r} of {name!r} has the shape {tuple(value.shape)} and "
                        f"the parameter {tuple(shape)}: ZeRO updates flat parts of parameters, so resume under "
                        "strategy='ddp', or with zero_optimization.stage 0."
                    )
                else:
                    _set_number(state, key, value, name, type(pieces.zero.optimizer).__name__, row)
        if not state:
            state.update(like if not saved.optimizer else {})
    pieces.relink()


def _set_number(state: dict[str, Any], key: str, value: Any, name: str, optimizer: str, row: Tensor) -> None:
    present = state.get(key)
    if present is not None and float(present) != float(value):
        raise CheckpointError(
            f"The checkpoint's optimizer has {key} {float(value):g} of {name!r} and {float(present):g} of other "
            "parameters, which ZeRO updates together and counts as one: resume under strategy='ddp' or 'fsdp', or "
            "with zero_optimization.stage 0."
        )
    if optimizer in _OWN_ADAMS and key == "step":
        state[key] = int(value)
    elif isinstance(value, Tensor):
        state[key] = value.detach().clone()
    else:
        state[key] = copy.deepcopy(value)
