"""Which optimizers FSDP can be given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drivetrain.element_wise import is_element_wise, spoken
from drivetrain.errors import ConfigurationError
from drivetrain.slots import Group


def check(cls: Callable[..., Any], kwargs: Mapping[str, Any], groups: Sequence[Group]) -> None:
    """Refuses an optimizer whose step on a part of a parameter is not a part of its step.

    Raises:
        ConfigurationError: naming it, and the cure.
    """
    if not is_element_wise(cls, kwargs, groups):
        raise ConfigurationError(
            f"Optimizer {spoken(cls)} does not work element by element, and strategy 'fsdp' gives "
            "each process a part of each parameter: use optim='adamw_torch', or strategy='ddp'."
        )
