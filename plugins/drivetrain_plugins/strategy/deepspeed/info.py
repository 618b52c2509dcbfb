"""What the strategy says about itself. Light: imports neither torch nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drivetrain.plugin import Claim, PluginInfo


def _claim(args: Any) -> Claim | None:
    if not args.deepspeed:
        return None
    shown = args.deepspeed if isinstance(args.deepspeed, str) else "{...}"
    return Claim(f"deepspeed={shown}")


def _probe(args: Any) -> Iterator[str]:
    from drivetrain_plugins.strategy.deepspeed.probe import problems

    yield from problems(args)


DEEPSPEED = PluginInfo(
    name="deepspeed",
    kind="strategy",
    summary="DeepSpeed: optimizer, gradients and weights spread over processes (ZeRO), with offload.",
    implementation="drivetrain_plugins.strategy.deepspeed.strategy:DeepSpeedPlugin",
    arguments=(
        "deepspeed",
        "max_grad_norm",
        "gradient_accumulation_steps",
        "local_rank",
        "ddp_backend",
        "ddp_timeout",
    ),
    requires=("deepspeed>=0.16",),
    extra="deepspeed",
    chosen_by=_claim,
    probe=_probe,
    shards=True,
)
