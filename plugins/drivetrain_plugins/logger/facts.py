"""What loggers are told of a run: copies, so that a thread can read them while training goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.secret import without_secrets

if TYPE_CHECKING:
    from drivetrain.run import Run

_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class Facts:
    """A run as it was when its logger began.

    Attributes:
        arguments: the arguments as JSON holds them, without secrets.
        model_config: the model's `config` likewise; None where it has none.
        run_name: what the run is called; None where nobody named it.
        output_dir, logging_dir: the folders of the arguments.
        step: updates done so far; more than none where a run is resumed.
        rows_at_step: rows of the log at that step, where a run is resumed.
        is_training: False where an evaluation runs by itself.
        trial_name, trial_params: of a search.
        resumed: what the logger had kept in the checkpoint that is resumed.
        again: whether the tracker was open before in this very run: a row came after the end.
        past: what the logger of the last training in this process would have kept; for an evaluation after it.
    """

    arguments: dict[str, Any]
    model_config: dict[str, Any] | None
    run_name: str | None
    output_dir: str
    logging_dir: str
    step: int
    rows_at_step: int
    is_training: bool
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    resumed: dict[str, Any] = field(default_factory=dict)
    past: dict[str, Any] = field(default_factory=dict)
    again: bool = False

    @property
    def name(self) -> str | None:
        """The trial's name within a search, else the run's."""
        return self.trial_name if self.trial_name is not None else self.run_name

    @property
    def configuration(self) -> dict[str, Any]:
        """The model's configuration and the arguments in one; where both have a name, it is the argument's."""
        return {**(self.model_config or {}), **self.arguments}

    @property
    def joins(self) -> dict[str, Any]:
        """What tells the run that this one goes on with; empty where it begins anew."""
        return self.resumed if self.is_training or self.again else self.past


def facts_of(run: Run, resumed: dict[str, Any]) -> Facts:
    """The facts of a run, as it is now."""
    args, state = run.args, run.state
    config: Any = getattr(run.model, "config", None)
    described = config.to_dict() if hasattr(config, "to_json_string") and hasattr(config, "to_dict") else None
    named = args.run_name is not None and args.run_name != args.output_dir
    return Facts(
        arguments=without_secrets(json.loads(args.to_json_string())),
        model_config=without_secrets(json.loads(json.dumps(described, default=str))),
        run_name=args.run_name if named else None,
        output_dir=str(args.output_dir),
        logging_dir=str(args.logging_dir),
        step=state.global_step,
        rows_at_step=sum(row.get("step") == state.global_step for row in state.log_history),
        is_training=run.is_training,
        trial_name=state.trial_name if state.is_hyper_param_search else None,
        trial_params=dict(state.trial_params) if state.trial_params else None,
        resumed=resumed,
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the log.

    Attributes:
        values: by the names that the log has: `loss`, `eval_loss`.
        step: updates done.
        epoch: epochs done.
    """

    values: dict[str, Any]
    step: int
    epoch: float | None = None

    @property
    def grouped(self) -> dict[str, Any]:
        """The values by the names that dashboards know: `eval/loss` and `test/loss`, `train/loss` for `loss`."""
        made: dict[str, Any] = {}
        for name, value in self.values.items():
            stage, _, rest = name.partition("_")
            made[f"{stage}/{rest}" if stage in ("eval", "test") and rest else f"train/{name}"] = value
        return made


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a row's values: a tensor or an array of one element is its number, and a larger one is copied."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else value.detach().cpu().clone()
    if hasattr(value, "dtype") and hasattr(value, "item"):
        return value.item() if getattr(value, "size", 1) == 1 else value.copy()
    return value


def is_number(value: Any) -> bool:
    """Whether a tracker of numbers can hold it. NaN and infinity are numbers."""
    return isinstance(value, (int, float))


def flag(name: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(name, "").lower() in _TRUE
