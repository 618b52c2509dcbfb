"""Whether an optimizer can update flat parts of parameters: ZeRO gives it nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from drivetrain.element_wise import is_element_wise, spoken
from drivetrain.errors import ConfigurationError
from drivetrain.evaluation_weights import trains_others
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.strategy.deepspeed.pieces import shape_of


def check_element_wise(factory: OptimizerFactory, groups: Sequence[dict[str, Any]], stage: int) -> None:
    """Refuses an optimizer whose update or state looks at more than one element.

    It is tried out: two updates of a few small parameters must be those of their elements in one flat row.
    Adafactor's factors, Muon's matrices and LAMB's norms are not; Adam, SGD, Lion and the like are.

    Args:
        factory: of the optimizer.
        groups: those that it has, for their options and for how many dimensions their parameters have.
        stage: of ZeRO.

    Raises:
        ConfigurationError: naming the optimizer, the stage, and the cure.
    """
    finished = factory.finished
    cls: Any = factory.cls if finished is None else type(finished)
    if trains_others(cls):
        raise ConfigurationError(
            f"The optimizer {spoken(cls)} keeps other weights for evaluation, which strategy 'deepspeed' with "
            f"ZeRO stage {stage} cannot swap: use strategy='ddp', or zero_optimization.stage 0."
        )
    # Of parameters that are spread over processes already, the shapes that they have whole.
    whole = [
        {**group, "params": [torch.empty(shape_of(p), device="meta") for p in group["params"]]}
        for group in groups
    ]
    if not is_element_wise(cls, factory.kwargs if finished is None else {}, whole):
        raise ConfigurationError(
            f"The optimizer {spoken(cls)} does not work element by element, but strategy 'deepspeed' with ZeRO "
            f"stage {stage} gives it flat parts of parameters: use optim='adamw_torch', or strategy='ddp'."
        )
