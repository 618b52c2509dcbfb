"""Whether a Trainer puts its model on the device as soon as it has it, as scripts expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drivetrain.plugin import PluginInfo
from drivetrain.resolve import Active, Resolver


def strategy_info(args: Any, instances: Sequence[Any]) -> PluginInfo | None:
    """The strategy that the arguments mean now, if that is clear. Problems are told when a run begins."""
    resolver = Resolver(args, instances, None, {})
    resolver.slot("strategy", required=False)
    active = resolver.plan.slot("strategy")
    return active.info if active is not None else None


def spreads_weights(active: Active | None) -> bool:
    """Whether the active strategy leaves each process a part of the weights only."""
    if active is None:
        return False
    return active.info.shards if active.info is not None else bool(getattr(active.plugin, "shards", False))


def place(model: Any, args: Any, instances: Sequence[Any]) -> None:
    """Moves the model to the device, unless the user keeps it elsewhere or a strategy will spread it."""
    if not args.place_model_on_device or any(p.device.type == "meta" for p in model.parameters()):
        return
    info = strategy_info(args, instances)
    if info is None or not info.shards:
        model.to(args.device)
