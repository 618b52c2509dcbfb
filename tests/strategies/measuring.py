"""What an engine is, and how much of the model and of the optimizer this process holds."""

from __future__ import annotations

from typing import Any

import torch

ENGINES = (
    "torch.nn.parallel",
    "torch.distributed.fsdp",
    "torch.distributed._composable",
    "deepspeed",
    "fairscale",
)


def engine(run: Any) -> str:
    """The engine's class that the model is an instance of, and its optimizer's where that is not torch's own."""
    optimizer = (
        getattr(run.model_wrapped, "optimizer", None) or run.optimizer
    )  # DeepSpeed's engine has its own
    found = [_engines_own(run.model_wrapped), _engines_own(optimizer)]
    return ", ".join(name for name in found if name)


def _engines_own(thing: Any) -> str:
    """The first class among its ancestors that an engine made; "" where it is plain torch."""
    for kind in type(thing).__mro__:
        if kind.__module__.startswith(ENGINES):
            return str(kind.__name__)
    return ""


def _local(tensor: torch.Tensor) -> int:
    """Elements of a tensor that this process holds."""
    if hasattr(tensor, "ds_tensor"):  # ZeRO-3 keeps the shard beside an empty parameter
        return int(tensor.ds_tensor.numel())
    if hasattr(tensor, "to_local"):
        return int(tensor.to_local().numel())
    return int(tensor.numel())


def innermost(optimizer: Any) -> Any:
    """The optimizer that holds the state, inside those that wrap it."""
    for _ in range(5):
        for name in ("optim", "optimizer"):
            inner = getattr(optimizer, name, None)
            if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
                optimizer = inner
                break
        else:
            break
    return optimizer


def elements(run: Any) -> dict[str, int]:
    """Elements of parameters, and of the optimizer's state (without step counters), on this process."""
    parameters = {id(p): p for p in run.model_wrapped.parameters()}
    state = innermost(run.optimizer).state
    held = [value for entry in state.values() for value in entry.values()]
    return {
        "parameters": sum(_local(p) for p in parameters.values()),
        "optimizer": sum(_local(v) for v in held if isinstance(v, torch.Tensor) and v.dim() > 0),
    }
