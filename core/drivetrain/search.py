"""Hyperparameter search: what every backend shares, and the documented names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple

from drivetrain import discover
from drivetrain.binding import new_manager
from drivetrain.errors import ConfigurationError, PluginError, did_you_mean
from drivetrain.plugin import import_string

logger = logging.getLogger("drivetrain")


class BestRun(NamedTuple):
    """The best trial of a search.

    Attributes:
        run_id: the trial's number; its checkpoints are in the folder `run-RUN_ID`.
        objective: what it reached; a list where there are several objectives.
        hyperparameters: what it was run with.
        run_summary: a backend's own account of the search, or None.
    """

    run_id: str
    objective: float | list[float]
    hyperparameters: dict[str, Any]
    run_summary: Any = None


class HPSearchBackend(str, Enum):  # noqa: UP042  # the documented class is this one
    """The documented backends. A plugin's name serves as well."""

    OPTUNA = "optuna"
    RAY = "ray"
    SIGOPT = "sigopt"
    WANDB = "wandb"


_NO_METRIC = ("_runtime", "_per_second", "_compilation_time")


def default_compute_objective(metrics: Mapping[str, float]) -> float:
    """The evaluation loss where that is all there is, else the sum of the other metrics, as 4.34.0 has it.

    Args:
        metrics: what `evaluate` returned. Epoch and speed do not count.
    """
    counted = {
        name: value
        for name, value in metrics.items()
        if name not in ("eval_loss", "epoch") and not name.endswith(_NO_METRIC)
    }
    return sum(counted.values()) if counted else metrics["eval_loss"]


def hyperparameter_search(
    trainer: Any,
    hp_space: Callable[[Any], dict[str, Any]] | None = None,
    compute_objective: Callable[[dict[str, float]], Any] | None = None,
    n_trials: int = 20,
    direction: str | Sequence[str] = "minimize",
    backend: str | HPSearchBackend | None = None,
    hp_name: Callable[[Any], str] | None = None,
    **kwargs: Any,
) -> Any:
    """Trains once a trial, and returns the `BestRun` (a list of them where there are several directions).

    Args:
        trainer: with a `model_init`. Its arguments are as they were when the search is over.
        hp_space: takes a trial and returns values by argument name; default: the backend's.
        compute_objective: takes the metrics of an evaluation; default: `default_compute_objective`.
        n_trials: how many trials.
        direction: "minimize" or "maximize", or one for each objective.
        backend: the name of a search plugin; default: the first that is installed.
        hp_name: takes a trial and returns the name that loggers and folders show.
        kwargs: the backend's own.

    Raises:
        ConfigurationError: there is no `model_init`, or the backend is not installed.
    """
    if trainer.model_init is None:
        raise ConfigurationError(
            "hyperparameter_search builds a fresh model for each trial: give Trainer a model_init."
        )
    name, plugin = _plugin(trainer, backend)
    manager = new_manager()
    manager.register(plugin, name=f"search:{name}")
    search = manager.hook.make_search(trainer=trainer)
    if search is None:
        raise PluginError(f"Search {name!r} gave nothing from make_search.")
    trainer.hp_search_backend = name
    trainer.hp_space = hp_space if hp_space is not None else search.default_hp_space
    trainer.hp_name = hp_name
    trainer.compute_objective = compute_objective or default_compute_objective
    try:
        return search.run(trainer, n_trials, direction, **kwargs)
    finally:
        trainer.hp_search_backend = None


def _plugin(trainer: Any, backend: str | HPSearchBackend | None) -> tuple[str, Any]:
    """The search plugin that was handed in, named, or found."""
    from drivetrain.requirements import missing
    from drivetrain.resolve import kind_of

    wanted = str(getattr(backend, "value", backend)) if backend is not None else None
    for instance in getattr(trainer, "_plugins", None) or ():
        name = str(getattr(instance, "name", None) or type(instance).__name__)
        if kind_of(instance) == "search" and wanted in (None, name):
            return name, instance
    known = discover.names("search")
    if wanted is None:
        ready = [name for name in known if not missing(discover.load_info("search", name))]
        if not ready:
            raise ConfigurationError(
                "hyperparameter_search finds no backend installed. Run: pip install 'drivetrain[optuna]'"
            )
        wanted = ready[0]
    info = discover.load_info("search", wanted)
    lacking = missing(info)
    if lacking:
        line = f"{info.distribution}[{info.extra}]" if info.extra else " ".join(lacking)
        raise ConfigurationError(
            f"Search {wanted!r} needs {' and '.join(lacking)}, which is not installed. "
            f"Run: pip install '{line}'"
        )
    return wanted, import_string(info.implementation)()


@contextmanager
def trial_arguments(args: Any, parameters: Mapping[str, Any]) -> Iterator[None]:
    """Sets the parameters of a trial on the arguments, in their types, and puts the arguments back after it.

    A parameter that is no argument is left to `model_init`, with a warning.

    Raises:
        ConfigurationError: a parameter cannot have the type of its argument.
    """
    known = {found.name: found.default for found in dataclasses.fields(args)}
    before = {name: getattr(args, name) for name in known}
    try:
        for name, value in parameters.items():
            if not hasattr(args, name):
                logger.warning(
                    "hp_space gives %r, which is no training argument; only model_init can see it.%s",
                    name,
                    did_you_mean(name, known),
                )
                continue
            old = getattr(args, name)
            # A whole number may stand where a fraction could: there the default tells the type.
            default = known.get(name)
            kind = float if isinstance(old, int) and isinstance(default, float) else type(old)
            setattr(args, name, value if old is None else _typed(name, value, kind))
        yield
    finally:
        for name, value in before.items():
            if getattr(args, name) is not value:
                setattr(args, name, value)


def _typed(name: str, value: Any, kind: type[Any]) -> Any:
    if isinstance(value, kind):
        return value
    try:
        made = kind(value)
    except (TypeError, ValueError):
        made = None
    if made is None or (isinstance(made, int) and made != value):
        raise ConfigurationError(f"hp_space gives {name}={value!r}, which is no {kind.__name__}.")
    return made
