"""Which optimizers fairscale's FSDP can be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from drivetrain.element_wise import is_element_wise, spoken
from drivetrain.errors import ConfigurationError
from drivetrain.slots import Group


def check_element_wise(
    cls: Callable[..., torch.optim.Optimizer], kwargs: dict[str, Any], groups: list[Group]
) -> None:
    """Refuses an optimizer that looks at more of a parameter than one element.

    Raises:
        ConfigurationError: naming it, and the cure.
    """
    if not is_element_wise(cls, kwargs, groups):
        raise ConfigurationError(
            f"Strategy 'fairscale' spreads flat parts of parameters under zero_dp_2 and zero_dp_3, and the "
            f"optimizer {spoken(cls)} does not update element by element: choose "
            "optim='adamw_torch', or sharded_ddp='simple'."
        )
