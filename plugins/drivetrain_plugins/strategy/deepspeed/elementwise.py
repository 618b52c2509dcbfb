"""Whether an optimizer can update flat parts of parameters: ZeRO gives it nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drivetrain.errors import ConfigurationError
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.strategy.deepspeed.pieces import shape_of

_SIDE = 4
_STEPS = 2
_RATE = 0.01
_OTHER_SHAPES: list[list[Tensor]] = []


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
    if factory.evaluation_weights is not None:
        raise ConfigurationError(
            f"The optimizer {_name(factory)} keeps other weights for evaluation, which strategy 'deepspeed' with "
            f"ZeRO stage {stage} cannot swap: use strategy='ddp', or zero_optimization.stage 0."
        )
    if not _goes_by_elements(factory, groups):
        raise ConfigurationError(
            f"The optimizer {_name(factory)} does not work element by element, but strategy 'deepspeed' with ZeRO "
            f"stage {stage} gives it flat parts of parameters: use optim='adamw_torch', or strategy='ddp'."
        )


def _name(factory: OptimizerFactory) -> str:
    cls = factory.cls if factory.finished is None else type(factory.finished)
    return str(getattr(cls, "__name__", cls))


def _goes_by_elements(factory: OptimizerFactory, groups: Sequence[dict[str, Any]]) -> bool:
    generator = torch.Generator().manual_seed(0)
    options, values = [], []
    for group in groups:
        ranks = {
            tuple(min(size, _SIDE) for size in shape_of(p))
            for p in group["params"]
            if p.numel() or shape_of(p)
        }
        if ranks:
            options.append(
                {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
            )
            values.append([torch.randn(shape, generator=generator) for shape in sorted(ranks)[:_SIDE]])
    steps = [
        [[torch.randn(v.shape, generator=generator) for v in of] for of in values] for _ in range(_STEPS)
    ]
    apart = _updated(factory, options, values, steps)
    if apart is None:
        return True  # it cannot be built outside its run, so nothing is known against it
    if apart is _OTHER_SHAPES:
        return False
    row = [[_flat(of)] for of in values]
    together = _updated(factory, options, row, [[[_flat(of)] for of in step] for step in steps])
    if together is None or together is _OTHER_SHAPES:
        return False
    return all(
        torch.allclose(_flat(one), other[0], rtol=1e-4, atol=1e-6)
        for one, other in zip(apart, together, strict=True)
    )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _updated(
    factory: OptimizerFactory,
    options: list[dict[str, Any]],
    values: list[list[Tensor]],
    steps: list[list[list[Tensor]]],
) -> list[list[Tensor]] | None:
    """The values of each group after the steps, or None where the optimizer refuses them or keeps other shapes."""
    parameters = [[torch.nn.Parameter(value.clone()) for value in of] for of in values]
    groups = [
        {**given, **({"lr": _RATE} if "lr" in given else {}), "params": of}
        for given, of in zip(options, parameters, strict=True)
    ]
    try:
        finished = factory.finished
        make: Any = factory.cls if finished is None else type(finished)
        optimizer = make(groups, **(factory.kwargs if finished is None else {}))
        for step in steps:
            for of, gradients in zip(parameters, step, strict=True):
                for parameter, gradient in zip(of, gradients, strict=True):
                    parameter.grad = gradient.clone()
            optimizer.step()
    except Exception:
        return None
    fits = all(
        not isinstance(state, Tensor) or state.dim() == 0 or state.shape == parameter.shape
        for of in parameters
        for parameter in of
        for state in optimizer.state.get(parameter, {}).values()
    )
    return [[parameter.detach() for parameter in of] for of in parameters] if fits else _OTHER_SHAPES
