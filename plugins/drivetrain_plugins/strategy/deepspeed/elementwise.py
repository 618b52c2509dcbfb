"""Whether an optimizer can update flat parts of parameters: ZeRO gives it nothing else."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain.errors import ConfigurationError
from drivetrain.slots import OptimizerFactory

_SHAPES = ((3, 4), (2, 5), (5,))


def check_element_wise(factory: OptimizerFactory, stage: int) -> None:
    """Refuses an optimizer whose update or state looks at more than one element.

    It is tried out: two updates of a few small parameters must be those of their elements in one flat row.
    Adafactor's factors, Muon's matrices and LAMB's norms are not; Adam, SGD, Lion and the like are.

    Raises:
        ConfigurationError: naming the optimizer, the stage, and the cure.
    """
    if factory.evaluation_weights is not None:
        raise ConfigurationError(
            f"The optimizer {_name(factory)} keeps other weights for evaluation, which strategy 'deepspeed' with "
            f"ZeRO stage {stage} cannot swap: use strategy='ddp', or zero_optimization.stage 0."
        )
    if _goes_by_elements(factory):
        return
    raise ConfigurationError(
        f"The optimizer {_name(factory)} does not work element by element, but strategy 'deepspeed' with ZeRO stage "
        f"{stage} gives it flat parts of parameters: use optim='adamw_torch', or strategy='ddp'."
    )


def _name(factory: OptimizerFactory) -> str:
    cls = factory.cls if factory.finished is None else type(factory.finished)
    return str(getattr(cls, "__name__", cls))


def _goes_by_elements(factory: OptimizerFactory) -> bool:
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(shape, generator=generator) for shape in _SHAPES]
    gradients = [[torch.randn(shape, generator=generator) for shape in _SHAPES] for _ in range(2)]
    flat = torch.cat([tensor.flatten() for tensor in whole])
    apart, states = _updated(factory, whole, gradients)
    together, _ = _updated(factory, [flat], [[torch.cat([g.flatten() for g in step])] for step in gradients])
    if apart is None and together is None:
        return True  # it cannot be built outside its run, so nothing is known against it
    if apart is None or together is None:
        return False
    return states and torch.allclose(
        torch.cat([tensor.flatten() for tensor in apart]), together[0], rtol=1e-4, atol=1e-6
    )


def _updated(
    factory: OptimizerFactory, values: list[torch.Tensor], steps: list[list[torch.Tensor]]
) -> tuple[list[torch.Tensor] | None, bool]:
    """The values after the steps, or None where the optimizer refuses them; and whether its state has their shapes."""
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    try:
        optimizer = _build(factory, parameters)
        for gradients in steps:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    except Exception:
        return None, False
    shapes = all(
        tensor.dim() == 0 or tensor.shape == parameter.shape
        for parameter in parameters
        for tensor in optimizer.state.get(parameter, {}).values()
        if isinstance(tensor, torch.Tensor)
    )
    return [parameter.detach() for parameter in parameters], shapes


def _build(factory: OptimizerFactory, parameters: list[torch.nn.Parameter]) -> Any:
    if factory.finished is None:
        return factory.cls([{"params": parameters}], **factory.kwargs)
    options = {key: value for key, value in factory.finished.defaults.items() if key != "params"}
    return type(factory.finished)([{"params": parameters, **options}])  # type: ignore[call-arg]
