"""An optimizer or a scheduler that both the configuration and an argument name."""

from __future__ import annotations

from typing import Any

from drivetrain_plugins.strategy.deepspeed.configuration import Configuration
from drivetrain_plugins.strategy.deepspeed.filling import ADAM

# Pairs that are the same thing by two names.
_SAME_SCHEDULE = {
    "WarmupDecayLR": ("linear",),
    "WarmupLR": ("constant_with_warmup", "constant"),
    "WarmupCosineLR": ("cosine",),
}


def doubled(config: Configuration, args: Any) -> list[str]:
    """One sentence for an optimizer, and one for a schedule, that is named twice and differently."""
    found = []
    kind = config.get("optimizer.type")
    if kind is not None and args.is_set("optim"):
        optim = _word(args.optim)
        if not (kind.lower() in ADAM and optim.startswith("adamw")) and kind.lower() != optim:
            found.append(
                f"deepspeed sets optimizer.type={kind!r}, but optim={optim!r}: take the block 'optimizer' out of the "
                "configuration, or leave optim out."
            )
    kind = config.get("scheduler.type")
    if kind is not None and args.is_set("lr_scheduler_type"):
        schedule = _word(args.lr_scheduler_type)
        if schedule not in _SAME_SCHEDULE.get(kind, ()):
            found.append(
                f"deepspeed sets scheduler.type={kind!r}, but lr_scheduler_type={schedule!r}: take the block "
                "'scheduler' out of the configuration, or leave lr_scheduler_type out."
            )
    return found


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))
