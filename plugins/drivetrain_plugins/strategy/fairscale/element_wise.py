"""Whether an optimizer treats every element of a parameter by itself, so that a part can be updated alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from drivetrain.errors import ConfigurationError
from drivetrain.slots import Group


def check_element_wise(
    cls: Callable[..., torch.optim.Optimizer], kwargs: dict[str, Any], groups: list[Group]
) -> None:
    """Tries the optimizer on a matrix, and on the two halves of it, laid flat.

    Args:
        cls: the optimizer's class.
        kwargs: its keyword arguments.
        groups: the parameter groups; their options are tried, not their parameters.

    Raises:
        ConfigurationError: the halves come to something else than the whole, or its state is not of their shape.
    """
    for group in groups:
        options = {key: value for key, value in group.items() if key != "params"}
        generator = torch.Generator().manual_seed(0)
        whole, gradient = torch.randn(2, 4, 6, generator=generator)
        try:
            updated, shaped = _updated(cls, kwargs, options, [whole], [gradient])
            halves, _ = _updated(
                cls, kwargs, options, list(whole.flatten().chunk(2)), list(gradient.flatten().chunk(2))
            )
        except Exception:  # what does not even take flat parameters
            updated, halves, shaped = whole, whole + 1, False
        if not shaped or not torch.allclose(updated.flatten(), halves.flatten(), rtol=1e-5, atol=1e-7):
            raise ConfigurationError(
                f"Strategy 'fairscale' spreads flat parts of parameters under zero_dp_2 and zero_dp_3, and the "
                f"optimizer {getattr(cls, '__name__', cls)} does not update element by element: choose "
                "optim='adamw_torch', or sharded_ddp='simple'."
            )


def _updated(
    cls: Callable[..., torch.optim.Optimizer],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    parts: list[torch.Tensor],
    gradients: list[torch.Tensor],
) -> tuple[torch.Tensor, bool]:
    """The parts after two steps, one after another; and whether all state is scalar or of a parameter's shape."""
    parameters = [torch.nn.Parameter(part.clone()) for part in parts]
    optimizer = cls([{**options, "params": parameters}], **kwargs)
    for factor in (1.0, -0.5):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * factor
        optimizer.step()
    shaped = all(
        value.dim() == 0 or value.shape == parameter.shape
        for parameter in parameters
        for value in optimizer.state[parameter].values()
        if isinstance(value, torch.Tensor)
    )
    return torch.cat([parameter.detach().flatten() for parameter in parameters]), shaped
