"""The optimizer as the rest of the trainer sees it: every parameter group, whatever DeepSpeed made of them."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain.evaluation_weights import trains_others
from drivetrain.slots import OptimizerFactory


class EngineOptimizer(torch.optim.Optimizer):
    """A view of the optimizer in the engine: schedules set its learning rates, logs read them.

    DeepSpeed drops groups without parameters, and puts flat parts in place of the parameters. Here all groups
    stand, in their order; those with parameters are the very dicts that the engine's optimizer reads.

    After the run the groups hold the model's own parameters again, and `kept` this process's share of the state,
    with which a second `train()` goes on, as it does with one process.

    Args:
        engine: the engine, which alone steps.
        groups: all groups, in the order in which they were made.
        factory: what the inner optimizer was built from.

    Attributes:
        inner: the optimizer in the engine.
        kept: after the run, what it was cut by and the state of each flat row; None where there is none.
    """

    def __init__(self, engine: Any, groups: list[dict[str, Any]], factory: OptimizerFactory) -> None:
        inner = engine.basic_optimizer
        self.inner = inner
        self.factory = factory
        self.kept: tuple[Any, list[dict[str, Any]]] | None = None
        super().__setstate__({"defaults": dict(inner.defaults), "param_groups": groups})
        self._opt_called = True  # what torch's schedulers ask for before their first step
        if trains_others(inner):  # under stage 0 alone, where its parameters are the model's own
            self.train, self.eval = inner.train, inner.eval

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's state, of whatever it updates."""
        return self.inner.state

    def step(self, closure: Any = None) -> Any:
        """Not for callers: an update goes through `run.strategy.update`."""
        raise RuntimeError(
            "Under the strategy 'deepspeed' the engine steps the optimizer; leave the call out."
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: the engine clears gradients after its update."""

    def __repr__(self) -> str:
        return f"EngineOptimizer({type(self.inner).__name__}, {len(self.param_groups)} groups)"
