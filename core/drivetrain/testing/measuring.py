"""What an engine is, and how much of the model and of the optimizer's state this process holds."""

from __future__ import annotations

from typing import Any

import torch


def classes(run: Any) -> list[str]:
    """Names of the classes that the wrapped model and the optimizer are instances of.

    Those of the optimizers that are inside of it too; torch's own that any model or optimizer has are left out.
    """
    found: dict[str, None] = {}
    for thing in (run.model_wrapped, *within(run.optimizer), *within(_engines_optimizer(run))):
        for kind in type(thing).__mro__:
            if kind not in (object, torch.nn.Module, torch.optim.Optimizer):
                found[kind.__name__] = None
    return list(found)


def _engines_optimizer(run: Any) -> Any:
    """An engine that is model and optimizer in one has the optimizer of its own making inside."""
    return getattr(run.model_wrapped, "optimizer", None)


def within(optimizer: Any) -> list[Any]:
    """The optimizer, and those that it wraps, the innermost last."""
    found = [] if optimizer is None else [optimizer]
    while found and len(found) < 5:
        for name in ("optim", "optimizer"):
            inner = getattr(found[-1], name, None)
            if isinstance(inner, torch.optim.Optimizer) and inner is not found[-1]:
                found.append(inner)
                break
        else:
            break
    return found


def local(tensor: torch.Tensor) -> int:
    """Elements of a tensor that this process holds."""
    if hasattr(tensor, "ds_tensor"):  # ZeRO-3 keeps its part beside an empty parameter
        return int(tensor.ds_tensor.numel())
    if hasattr(tensor, "to_local"):
        return int(tensor.to_local().numel())
    return int(tensor.numel())


def held(run: Any) -> dict[str, int]:
    """Elements of parameters, and of the optimizer's state (without step counters), on this process."""
    parameters = {id(p): p for p in run.model_wrapped.parameters()}
    state = within(run.optimizer)[-1].state
    tensors = [value for entry in state.values() for value in entry.values()]
    return {
        "parameters": sum(local(p) for p in parameters.values()),
        "optimizer": sum(local(v) for v in tensors if isinstance(v, torch.Tensor) and v.dim() > 0),
    }
