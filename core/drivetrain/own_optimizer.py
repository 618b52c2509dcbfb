"""An optimizer that the user names by class or by "module:Class", and the text of `optim_args`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from drivetrain.errors import ConfigurationError, did_you_mean
from drivetrain.named import callable_of
from drivetrain.parameters import parameter_groups

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.slots import OptimizerFactory

_ADAM_DEFAULTS = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


def parse_optim_args(text: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """`"key=value,key=value"` as a dict of texts; blanks do not count.

    Raises:
        ConfigurationError: a part that is not `key=value`.
    """
    if not text:
        return {}
    if isinstance(text, Mapping):
        return dict(text)
    found: dict[str, Any] = {}
    for part in text.replace(" ", "").split(","):
        key, equals, value = part.partition("=")
        if not key or not equals or "=" in value:
            raise ConfigurationError(
                f"optim_args={text!r} must read 'key=value,key=value'; {part!r} does not."
            )
        found[key] = value
    return found


def own_optimizer_factory(cls: Any, run: Run) -> OptimizerFactory:
    """The factory of an optimizer class of the user's.

    It gets the documented parameter groups (with `param_groups`), `lr`, what `optim_args` says, and Adam's
    betas and epsilon where the user has changed those arguments and the class takes them.

    Args:
        cls: a class, any callable that takes parameter groups, or its import string "module:Class".
        run: the run; its model's parameters are checked against `param_groups`.

    Raises:
        ConfigurationError: the class cannot be imported, or does not take what was given.
    """
    from drivetrain.slots import OptimizerFactory

    args = run.args
    found, name = callable_of(cls, "optim")
    accepted = _accepted(found)
    kwargs: dict[str, Any] = {"lr": args.learning_rate}
    if args.adam_beta1 != 0.9 or args.adam_beta2 != 0.999:
        kwargs["betas"] = (args.adam_beta1, args.adam_beta2)
    if args.adam_epsilon != _ADAM_DEFAULTS["adam_epsilon"]:
        kwargs["eps"] = args.adam_epsilon
    given = {key: _read(value) for key, value in parse_optim_args(args.optim_args).items()}
    problems = [
        f"Optimizer '{name}' takes no '{key}', but {said} is set; remove it."
        for key, said in (
            ("lr", "learning_rate"),
            ("betas", "adam_beta1 or adam_beta2"),
            ("eps", "adam_epsilon"),
        )
        if key in kwargs and accepted is not None and key not in accepted
    ]
    if args.weight_decay and accepted is not None and "weight_decay" not in accepted:
        problems.append(f"Optimizer '{name}' takes no 'weight_decay', but weight_decay is set; remove it.")
    for key in given:
        if accepted is not None and key not in accepted:
            problems.append(f"Optimizer '{name}' takes no '{key}' (optim_args).{did_you_mean(key, accepted)}")
        elif key in ("lr", "weight_decay"):
            argument = {"lr": "learning_rate", "weight_decay": "weight_decay"}[key]
            problems.append(f"optim_args must not set '{key}'; use {argument}.")
    if problems:
        raise ConfigurationError(problems)
    return OptimizerFactory(
        cls=found, kwargs={**kwargs, **given}, groups=groups_of(args, found, check_with=run.model)
    )


def groups_of(
    args: Any, cls: Callable[..., Any] | None, check_with: Any = None
) -> Callable[[Any], list[Any]]:
    """What makes the documented parameter groups of a model from the arguments.

    Args:
        args: `weight_decay` and `param_groups` are read.
        cls: the optimizer's class, against which the options of `param_groups` are checked.
        check_with: a model to try the patterns on at once, so that a mistake shows before anything heavy;
            one without parameters stands for a model that is not there yet.
    """

    def groups(model: Any) -> list[Any]:
        return parameter_groups(model, args.weight_decay, None, args.param_groups, cls)

    if args.param_groups and check_with is not None and next(check_with.parameters(), None) is not None:
        groups(check_with)
    return groups


def _accepted(cls: Callable[..., Any]) -> set[str] | None:
    """Names of a callable's keyword arguments; None where it takes any, or does not tell."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters[1:]}


def _read(value: Any) -> Any:
    """Text as the Python literal it is; text where it is none. A tuple is written "0.9;0.99"."""
    if not isinstance(value, str):
        return value
    if ";" in value:
        return tuple(_read(part) for part in value.strip("()").split(";"))
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
