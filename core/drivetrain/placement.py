"""Where the weights are before a run: on the device as soon as there is a model, as scripts expect, or nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from drivetrain.plugin import PluginInfo
from drivetrain.resolve import Active, Resolver

logger = logging.getLogger("drivetrain")


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


def first_model(build: Callable[[], Any], args: Any, instances: Sequence[Any]) -> Any:
    """The model that `model_init` builds to be looked at; each run builds its own.

    Where a strategy spreads the weights it is built on the meta device, without memory for them, unless
    `model_init` cannot be run there (it loads weights).
    """
    info = strategy_info(args, instances)
    if info is not None and info.shards:
        try:
            with torch.device("meta"):
                return build()
        except Exception as error:
            logger.info(
                "model_init does not run on the meta device (%s), so the model is built whole.", error
            )
    return build()


def is_empty(model: Any) -> bool:
    """Whether a model was built on the meta device."""
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def place(model: Any, args: Any, instances: Sequence[Any]) -> None:
    """Moves the model to the device, unless the user keeps it elsewhere or a strategy will spread it."""
    if not args.place_model_on_device or is_empty(model):
        return
    info = strategy_info(args, instances)
    if info is None or not info.shards:
        model.to(args.device)
