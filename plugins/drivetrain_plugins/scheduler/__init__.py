"""Learning rate schedules. Light: says what there is, and imports nothing that trains."""

from __future__ import annotations

from drivetrain.plugin import PluginInfo
from drivetrain_plugins.probing import options_probe

_HERE = "drivetrain_plugins.scheduler"
_ARGUMENTS = ("lr_scheduler_type", "lr_scheduler_kwargs", "learning_rate")
_WARMUP = ("warmup_steps", "warmup_ratio")


def _info(name: str, summary: str, implementation: str, options: str, warmup: bool = True) -> PluginInfo:
    options = f"{_HERE}.options:{options}"
    return PluginInfo(
        name=name,
        kind="scheduler",
        summary=summary,
        implementation=f"{_HERE}.{implementation}",
        options=options,
        arguments=_ARGUMENTS + (_WARMUP if warmup else ()),
        probe=options_probe(name, options, f"{_HERE}.options:read_kwargs"),
    )


LINEAR = _info("linear", "warmup, then down to 0 in a straight line", "linear:Linear", "NoOptions")
COSINE = _info("cosine", "warmup, then down to 0 along half a cosine", "cosine:Cosine", "CosineOptions")
COSINE_WITH_RESTARTS = _info(
    "cosine_with_restarts",
    "warmup, then half cosines to 0, each starting again at the top",
    "cosine:CosineWithRestarts",
    "CosineWithRestartsOptions",
)
COSINE_WITH_MIN_LR = _info(
    "cosine_with_min_lr",
    "warmup, then down to a least learning rate along half a cosine",
    "cosine:CosineWithMinLR",
    "CosineWithMinLROptions",
)
POLYNOMIAL = _info(
    "polynomial",
    "warmup, then down to an end value along a power of what remains",
    "polynomial:Polynomial",
    "PolynomialOptions",
)
CONSTANT = _info("constant", "the learning rate as it is", "constant:Constant", "NoOptions", warmup=False)
CONSTANT_WITH_WARMUP = _info(
    "constant_with_warmup",
    "warmup, then the learning rate as it is",
    "constant:ConstantWithWarmup",
    "NoOptions",
)
INVERSE_SQRT = _info(
    "inverse_sqrt",
    "warmup, then down with the inverse root of the update",
    "inverse_sqrt:InverseSqrt",
    "InverseSqrtOptions",
)
REDUCE_LR_ON_PLATEAU = _info(
    "reduce_lr_on_plateau",
    "down by a factor when the metric of evaluations no longer improves",
    "reduce_lr_on_plateau:ReduceLROnPlateauPlugin",
    "PlateauOptions",
    warmup=False,
)
PIECEWISE = _info(
    "piecewise",
    "warmup, then a stated multiple of the learning rate in each stretch of the run",
    "piecewise:Piecewise",
    "PiecewiseOptions",
)
EXPONENTIAL = _info(
    "exponential",
    "warmup, then down by the same factor at every update",
    "exponential:Exponential",
    "ExponentialOptions",
)
WARMUP_STABLE_DECAY = _info(
    "warmup_stable_decay",
    "warmup, a stretch at the top, then decay to a least value",
    "warmup_stable_decay:WarmupStableDecay",
    "WarmupStableDecayOptions",
)
