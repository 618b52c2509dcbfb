"""Options of the optimizers, given as `plugins={"sgd": {"momentum": 0.9}}` or `optim_args="momentum=0.9"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from drivetrain.errors import ConfigurationError
from drivetrain.options import fill_options

T = TypeVar("T")

# What `optim_args` could say as well, and the documented argument that says it.
_SAID_ELSEWHERE = {
    "lr": "learning_rate",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1 and adam_beta2",
    "beta2": "adam_beta2",
}


def read_optim_args(options: T, args: Any, name: str) -> T:
    """`options` with what `args.optim_args` sets.

    Raises:
        ConfigurationError: an unknown option or a wrong value, or one that an argument of its own sets.
    """
    from drivetrain.own_optimizer import parse_optim_args

    given = parse_optim_args(args.optim_args)
    for key in given:
        if key in _SAID_ELSEWHERE:
            raise ConfigurationError(f"optim_args must not set '{key}'; use {_SAID_ELSEWHERE[key]}.")
    return fill_options(options, given, f"Optimizer '{name}' (optim_args)")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"option '{name}' must not be negative, and is {value}.")


@dataclass(frozen=True)
class AdamWOptions:
    """torch's AdamW.

    Attributes:
        amsgrad: divides by the largest second moment so far (Reddi et al., 2018).
    """

    amsgrad: bool = False


@dataclass(frozen=True)
class AdamWHFOptions:
    """AdamW in the form of transformers.

    Attributes:
        correct_bias: divides out the moments' bias towards zero, as in the paper; BERT's original did not.
    """

    correct_bias: bool = True


@dataclass(frozen=True)
class AdafactorOptions:
    """Adafactor (Shazeer and Stern, 2018), with the learning rate from outside.

    Attributes:
        scale_parameter: multiplies the learning rate by the root mean square of the parameter.
        clip_threshold: root mean square above which an update is scaled down.
        decay_rate: exponent c of the second moment's decay, 1 - t^c.
        beta1: decay of the mean of updates; None keeps none.
        eps: what is added to squared gradients, and the least scale of a parameter.
    """

    scale_parameter: bool = False
    clip_threshold: float = 1.0
    decay_rate: float = -0.8
    beta1: float | None = None
    eps: tuple[float, float] = (1e-30, 1e-3)


@dataclass(frozen=True)
class SGDOptions:
    """torch's SGD: momentum, its dampening, and Nesterov's form."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _positive(momentum=self.momentum)
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("option 'nesterov' needs a momentum above 0 and a dampening of 0.")


@dataclass(frozen=True)
class AdagradOptions:
    """torch's Adagrad."""

    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        _positive(
            lr_decay=self.lr_decay, initial_accumulator_value=self.initial_accumulator_value, eps=self.eps
        )


@dataclass(frozen=True)
class RMSpropOptions:
    """torch's RMSprop: smoothing constant, epsilon, momentum, and division by the centred variance."""

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        _positive(alpha=self.alpha, eps=self.eps, momentum=self.momentum)


@dataclass(frozen=True)
class MuonOptions:
    """torch's Muon; the AdamW beside it takes the `adam_*` arguments.

    Attributes:
        momentum: of the gradient that is orthogonalised.
        nesterov: looks ahead by one momentum step.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: "match_rms_adamw" scales a matrix's update by 0.2 sqrt(max(rows, columns)), so that one
            learning rate and one weight decay serve both optimizers; "original" by
            sqrt(max(1, rows / columns)), Keller Jordan's form, whose learning rate is higher (0.02).
        adamw: further patterns over parameter names (as in `param_groups`) that AdamW takes.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    adamw: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive(momentum=self.momentum)
        if not 0 < self.ns_steps < 100:
            raise ValueError(f"option 'ns_steps' must lie between 1 and 99, and is {self.ns_steps}.")


FloatDtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True)
class AnyPrecisionOptions:
    """AdamW with chosen dtypes.

    Attributes:
        use_kahan_summation: keeps what updates lose to rounding, for weights in half precision.
        momentum_dtype: of the first moment.
        variance_dtype: of the second moment.
        compensation_buffer_dtype: of what rounding has lost.
    """

    use_kahan_summation: bool = False
    momentum_dtype: FloatDtype = "float32"
    variance_dtype: FloatDtype = "float32"
    compensation_buffer_dtype: FloatDtype = "bfloat16"


@dataclass(frozen=True)
class ScheduleFreeOptions:
    """Schedule-free AdamW (Defazio et al., 2024).

    Attributes:
        r: power of the step by which it counts in the average.
        weight_lr_power: power of the highest rate so far by which a step counts; 0 lets a warmup count in full.
    """

    r: float = 0.0
    weight_lr_power: float = 2.0

    def __post_init__(self) -> None:
        _positive(r=self.r, weight_lr_power=self.weight_lr_power)


@dataclass(frozen=True)
class ScheduleFreeSGDOptions(ScheduleFreeOptions):
    """Schedule-free SGD.

    Attributes:
        momentum: how much of the average is in the weights that are trained; above 0 and below 1.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.momentum < 1:
            raise ValueError(f"option 'momentum' must lie between 0 and 1, and is {self.momentum}.")


@dataclass(frozen=True)
class ScheduleFreeRAdamOptions(ScheduleFreeOptions):
    """Schedule-free RAdam, which warms up by itself.

    Attributes:
        silent_sgd_phase: leaves the weights alone while the second moment is too young to be used.
    """

    silent_sgd_phase: bool = True


@dataclass(frozen=True)
class BitsAndBytesOptions:
    """Optimizers of bitsandbytes.

    Attributes:
        min_8bit_size: parameters with fewer elements keep their state in 32 bits.
    """

    min_8bit_size: int = 4096

    def __post_init__(self) -> None:
        _positive(min_8bit_size=self.min_8bit_size)


@dataclass(frozen=True)
class TorchAOOptions:
    """AdamW of torchao, whose moments are quantised.

    Attributes:
        block_size: elements that share a scale; by default torchao's own, 256 of 8 bits and 128 of 4.
        bf16_stochastic_round: rounds weights in bfloat16 up or down by chance.
    """

    block_size: int | None = None
    bf16_stochastic_round: bool = False

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"option 'block_size' must be at least 1, and is {self.block_size}.")


@dataclass(frozen=True)
class NoOptions:
    """Of an optimizer that has none besides the documented arguments."""


@dataclass(frozen=True)
class GaLoreOptions:
    """AdamW on gradients of low rank (Zhao et al., 2024).

    Attributes:
        target_modules: patterns over parameter names (as in `param_groups`) of the matrices that are projected, or
            "all-linear": the weights of all Linear layers but the head.
        rank: of the projected gradients.
        update_proj_gap: updates between two projections' making.
        scale: of the projected updates.
        proj_type: which side is projected.
    """

    target_modules: tuple[str, ...] = ()
    rank: int = 128
    update_proj_gap: int = 200
    scale: float = 0.25
    proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.update_proj_gap < 1:
            raise ValueError("options 'rank' and 'update_proj_gap' must be at least 1.")
        _positive(scale=self.scale)
