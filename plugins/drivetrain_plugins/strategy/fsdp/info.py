"""What the strategy `fsdp` says about itself. Light: torch is imported only by the probe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drivetrain.plugin import Claim, PluginInfo


def _asked_for(args: Any) -> Claim | None:
    if not args.fsdp:
        return None
    return Claim(f"fsdp={' '.join(str(getattr(word, 'value', word)) for word in args.fsdp)!r}")


def _probe(args: Any) -> Iterator[str]:
    from drivetrain_plugins.strategy.fsdp.probe import problems

    return problems(args)


FSDP = PluginInfo(
    name="fsdp",
    kind="strategy",
    summary="PyTorch's FSDP: each process keeps a part of weights, gradients and optimizer state.",
    implementation="drivetrain_plugins.strategy.fsdp.strategy:FSDPPlugin",
    options="drivetrain_plugins.strategy.fsdp.options:FSDPOptions",
    arguments=(
        "fsdp",
        "fsdp_config",
        "fsdp_version",
        "max_grad_norm",
        "gradient_accumulation_steps",
        "local_rank",
        "ddp_backend",
        "ddp_timeout",
    ),
    chosen_by=_asked_for,
    probe=_probe,
    shards=True,
)
