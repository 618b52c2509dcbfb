"""The strategies that come with drivetrain: what they say about themselves."""

from __future__ import annotations

from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight

SINGLE = PluginInfo(
    name="single",
    kind="strategy",
    summary="One process, one device: CPU, CUDA or MPS, whichever there is.",
    implementation="drivetrain_plugins.strategy.single:SinglePlugin",
    arguments=("max_grad_norm", "gradient_accumulation_steps"),
    chosen_by=lambda args: Claim("one process", Weight.DEFAULT),
)


def _several_processes(args: Any) -> Claim | None:
    return Claim(f"{args.world_size} processes", Weight.ENVIRONMENT) if args.world_size > 1 else None


DDP = PluginInfo(
    name="ddp",
    kind="strategy",
    summary="PyTorch's DistributedDataParallel: a replica a process, gradients averaged.",
    implementation="drivetrain_plugins.strategy.ddp:DDPPlugin",
    arguments=(
        "max_grad_norm",
        "gradient_accumulation_steps",
        "local_rank",
        "ddp_backend",
        "ddp_timeout",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
    ),
    options="drivetrain_plugins.strategy.ddp:DDPOptions",
    chosen_by=_several_processes,
    restarts=True,
)
