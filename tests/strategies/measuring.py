"""What an engine is. How much a process holds is measured as in the contract of strategies."""

from __future__ import annotations

from typing import Any

from drivetrain.testing.measuring import held as elements
from drivetrain.testing.measuring import within

__all__ = ["elements", "engine", "innermost"]

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


def innermost(optimizer: Any) -> Any:
    """The optimizer that holds the state, inside those that wrap it."""
    return within(optimizer)[-1]
