"""A scheduler that the user names by class or function, or by "module:Class"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from drivetrain.errors import ConfigurationError, did_you_mean
from drivetrain.named import callable_of

if TYPE_CHECKING:
    import torch

    from drivetrain.run import Run
    from drivetrain.slots import LRScheduler, SchedulerFactory

# Updates of the run, under the names by which schedulers of torch and transformers ask for them.
_TOTAL = ("num_training_steps", "total_steps", "T_max")
_WARMUP = "num_warmup_steps"


def own_scheduler_factory(cls: Any, run: Run) -> SchedulerFactory:
    """The factory of a scheduler class, or of a function that makes one, of the user's.

    It is called with the optimizer and `lr_scheduler_kwargs`. Where it takes `num_training_steps`,
    `total_steps` or `T_max`, or `num_warmup_steps`, and these are not given, they are filled in. It is
    stepped after each update; one whose `step` needs a metric (ReduceLROnPlateau) after each evaluation.

    Args:
        cls: a class, a callable `(optimizer, **kwargs) -> scheduler`, or its import string.
        run: the run.

    Raises:
        ConfigurationError: it cannot be imported, or does not take what was given.
    """
    from drivetrain.slots import SchedulerFactory

    args: Any = run.args
    found, name = callable_of(cls, "lr_scheduler_type")
    given = dict(args.lr_scheduler_kwargs or {})
    parameters = _parameters(found)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    problems = [
        f"Scheduler '{name}' takes no '{key}' (lr_scheduler_kwargs).{did_you_mean(key, parameters)}"
        for key in given
        if parameters and not takes_any and key not in parameters
    ]
    if (args.warmup_steps or args.warmup_ratio) and _WARMUP not in parameters:
        said = "warmup_steps" if args.warmup_steps else "warmup_ratio"
        problems.append(f"Scheduler '{name}' takes no '{_WARMUP}', but {said} is set; remove it.")
    known = {*given, *(key for key in (*_TOTAL, _WARMUP) if key in parameters)}
    problems += [
        f"Scheduler '{name}' needs '{p.name}'; give it in lr_scheduler_kwargs."
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in known
    ]
    if problems:
        raise ConfigurationError(problems)

    def make(optimizer: torch.optim.Optimizer, num_training_steps: int) -> LRScheduler:
        filled = dict(given)
        for key in _TOTAL:
            # total_steps of OneCycleLR is a choice beside epochs and steps_per_epoch.
            if key in parameters and key not in given and not (key == "total_steps" and "epochs" in given):
                filled[key] = num_training_steps
        if _WARMUP in parameters and _WARMUP not in given:
            filled[_WARMUP] = args.get_warmup_steps(num_training_steps)
        made: LRScheduler = found(optimizer, **filled)
        return made

    return SchedulerFactory(
        make=make, num_training_steps=run.state.max_steps, per_evaluation=_needs_metric(found)
    )


def _parameters(found: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters after the optimizer; empty where the signature does not tell."""
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return {}
    return {p.name: p for p in parameters[1:]}


def _needs_metric(found: Callable[..., Any]) -> bool:
    """Whether the scheduler's `step` cannot be called without a value to judge."""
    step = getattr(found, "step", None)
    if step is None:
        return False
    parameters = list(inspect.signature(step).parameters.values())[1:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
