"""Optimizers that train other weights than those that are evaluated and saved (schedule-free ones, for instance).

Such an optimizer has two methods beside `step`: `train` puts the weights that it trains into the parameters, and `eval`
those that it was all for. An evaluation, a saved model and the model that training leaves behind have the latter. Where
training goes on afterwards, it goes on with the very weights that it had: what `train` computes anew is off by a
rounding, so they are set aside in the optimizer's state meanwhile, and a checkpoint holds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.slots import TrainState

if TYPE_CHECKING:
    from drivetrain.run import Run

TRAINED = "train_weights"
"""Key of a parameter's state under which its weights in training lie, while the parameter holds the others."""


def trains_others(optimizer: Any) -> bool:
    """Whether an optimizer, or its class, trains other weights than those that are evaluated."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def evaluation_weights(run: Run) -> Iterator[None]:
    """The weights for evaluation within; afterwards those that are trained, bit for bit. May be entered again."""
    optimizer = run.optimizer
    if run.has_evaluation_weights or not trains_others(optimizer):
        yield
        return
    assert optimizer is not None
    for parameter in _parameters(optimizer):
        if state := optimizer.state.get(parameter):
            state[TRAINED] = parameter.detach().clone()
    leave_evaluation_weights(run)
    try:
        yield
    finally:
        train_weights(run)


def train_weights(run: Run) -> None:
    """Puts the weights that are trained into the model: those set aside, by a checkpoint too, else computed anew."""
    if not trains_others(run.optimizer):
        return
    optimizer: Any = run.optimizer
    optimizer.train()
    with torch.no_grad():
        for parameter in _parameters(optimizer):
            aside = optimizer.state.get(parameter, {}).pop(TRAINED, None)
            if aside is not None:
                parameter.copy_(aside)
    run.has_evaluation_weights = False
    _forget_gathered(run)


def leave_evaluation_weights(run: Run) -> None:
    """Puts the weights for evaluation into the model, which keeps them."""
    if run.has_evaluation_weights or not trains_others(run.optimizer):
        return
    optimizer: Any = run.optimizer
    optimizer.eval()
    run.has_evaluation_weights = True
    _forget_gathered(run)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _forget_gathered(run: Run) -> None:
    """Lets a strategy that spreads weights take no copy that it gathered earlier for what they are now."""
    run.strategy.state_in(TrainState({}))
