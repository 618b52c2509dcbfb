"""Options of the schedules, given as `lr_scheduler_kwargs={"num_cycles": 2}`, or by the plugin's name in
`plugins={"cosine": {"num_cycles": 2}}`.

Steps are updates. A multiplier is a multiple of the learning rate (of each parameter group's own).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from drivetrain.options import fill_options

T = TypeVar("T")
Curve = Literal["linear", "cosine", "1-sqrt"]


def read_kwargs(options: T, args: Any, name: str) -> T:
    """`options` with what `args.lr_scheduler_kwargs` sets.

    Raises:
        ConfigurationError: an unknown option, or a wrong value.
    """
    return fill_options(options, args.lr_scheduler_kwargs, f"Scheduler '{name}' (lr_scheduler_kwargs)")


def _share(name: str, value: float | None) -> None:
    if value is not None and not 0.0 <= value <= 1.0:
        raise ValueError(f"option '{name}' must lie between 0 and 1, and is {value}.")


@dataclass(frozen=True)
class NoOptions:
    """A schedule that the documented arguments say all about."""


@dataclass(frozen=True)
class CosineOptions:
    """Half a cosine.

    Attributes:
        num_cycles: waves of the cosine over the run; a half goes from the top to 0.
    """

    num_cycles: float = 0.5


@dataclass(frozen=True)
class CosineWithRestartsOptions:
    """Half cosines, one after the other.

    Attributes:
        num_cycles: how many.
    """

    num_cycles: int = 1

    def __post_init__(self) -> None:
        if self.num_cycles < 1:
            raise ValueError(f"option 'num_cycles' must be at least 1, and is {self.num_cycles}.")


@dataclass(frozen=True)
class CosineWithMinLROptions:
    """A cosine that ends above 0. One of the two ends is needed.

    Attributes:
        num_cycles: waves of the cosine over the run.
        min_lr: the learning rate at the end.
        min_lr_rate: the same as a share of the learning rate.
    """

    num_cycles: float = 0.5
    min_lr: float | None = None
    min_lr_rate: float | None = None

    def __post_init__(self) -> None:
        if self.min_lr is not None and self.min_lr_rate is not None:
            raise ValueError("options 'min_lr' and 'min_lr_rate' say the same; keep one.")
        if self.min_lr is not None and self.min_lr < 0:
            raise ValueError(f"option 'min_lr' must not be negative, and is {self.min_lr}.")
        _share("min_lr_rate", self.min_lr_rate)


@dataclass(frozen=True)
class PolynomialOptions:
    """A power of the share of updates that remain.

    Attributes:
        lr_end: the learning rate at the end.
        power: the exponent; 1 is a straight line.
    """

    lr_end: float = 1e-7
    power: float = 1.0


@dataclass(frozen=True)
class InverseSqrtOptions:
    """The inverse root of the update.

    Attributes:
        timescale: updates until the rate has fallen by 1/sqrt(2); None is the warmup, or 10,000 without one.
    """

    timescale: int | None = None

    def __post_init__(self) -> None:
        if self.timescale is not None and self.timescale < 1:
            raise ValueError(f"option 'timescale' must be at least 1, and is {self.timescale}.")


@dataclass(frozen=True)
class PlateauOptions:
    """torch's ReduceLROnPlateau, stepped with `metric_for_best_model` after each evaluation.

    Attributes:
        mode: whether the metric should become small or large. "min" whatever the metric, as in transformers
            4.34.0: say "max" for an accuracy.
        factor: what the learning rate is multiplied by.
        patience: evaluations without improvement that are put up with.
        threshold: the least improvement that counts.
        threshold_mode: whether that is a share of the best value, or absolute.
        cooldown: evaluations after a reduction that are not counted.
        min_lr: the least learning rate.
        eps: a smaller change than this is not made.
    """

    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.factor >= 1.0:
            raise ValueError(f"option 'factor' must be below 1, and is {self.factor}.")


@dataclass(frozen=True)
class PiecewiseOptions:
    """A multiplier for each stretch between boundaries.

    Attributes:
        boundaries: where a new stretch begins, rising: updates (1000), or below 1 shares of the run (0.5).
        values: multipliers, one more than boundaries. Warmup, if any, rises to them from 0.
    """

    boundaries: tuple[float, ...] = (0.5, 0.75)
    values: tuple[float, ...] = (1.0, 0.1, 0.01)

    def __post_init__(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"option 'values' must have one more entry than 'boundaries' ({len(self.boundaries)}), "
                f"and has {len(self.values)}."
            )
        if any(boundary <= 0 for boundary in self.boundaries):
            raise ValueError("option 'boundaries' must be positive.")
        if any(value < 0 for value in self.values):
            raise ValueError("option 'values' must not be negative.")


@dataclass(frozen=True)
class ExponentialOptions:
    """The same factor at every update.

    Attributes:
        gamma: that factor; None takes the one that ends at `end`.
        end: multiplier at the last update of the run, where `gamma` is None.
    """

    gamma: float | None = None
    end: float = 0.01

    def __post_init__(self) -> None:
        if self.gamma is not None and not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"option 'gamma' must lie above 0 and at most at 1, and is {self.gamma}.")
        if not 0.0 < self.end <= 1.0:
            raise ValueError(f"option 'end' must lie above 0 and at most at 1, and is {self.end}.")


@dataclass(frozen=True)
class WarmupStableDecayOptions:
    """Up, along the top, and down.

    Attributes:
        num_decay_steps: updates of the way down; below 1 a share of the run.
        num_stable_steps: updates at the top; None is what warmup and decay leave of the run.
        warmup_type, decay_type: the form of the way up and down.
        min_lr_ratio: multiplier at the beginning and at the end.
        num_cycles: waves of a cosine on the way down.
    """

    num_decay_steps: float = 0.1
    num_stable_steps: int | None = None
    warmup_type: Curve = "linear"
    decay_type: Curve = "cosine"
    min_lr_ratio: float = 0.0
    num_cycles: float = 0.5

    def __post_init__(self) -> None:
        if self.num_decay_steps < 0:
            raise ValueError(f"option 'num_decay_steps' must not be negative, and is {self.num_decay_steps}.")
        _share("min_lr_ratio", self.min_lr_ratio)
