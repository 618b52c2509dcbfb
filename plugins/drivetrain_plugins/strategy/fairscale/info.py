"""What the strategy `fairscale` says about itself; light."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drivetrain.plugin import Claim, PluginInfo

FULLY = ("zero_dp_2", "zero_dp_3")


def words(args: Any) -> list[str]:
    """`sharded_ddp` as plain words; `simple` where the strategy was only named."""
    chosen = [str(getattr(word, "value", word)) for word in args.sharded_ddp or ()]
    return chosen or ["simple"]


def has_cuda(args: Any) -> bool:
    """Whether the run will be on a CUDA device. Asks torch: `args.device` would make the process group."""
    import torch

    return torch.cuda.is_available() and not args.use_cpu


def _chosen(args: Any) -> Claim | None:
    return Claim(f"sharded_ddp={' '.join(words(args))!r}") if args.sharded_ddp else None


def _probe(args: Any) -> Iterator[str]:
    chosen = words(args)
    mode = next((word for word in chosen if word in FULLY), None)
    if mode is not None and not has_cuda(args):
        where = "use_cpu=True keeps this run on the CPU" if args.use_cpu else "this machine has none"
        yield (
            f"sharded_ddp={' '.join(chosen)!r} needs a CUDA device, since FairScale's FSDP is written for CUDA, and "
            f"{where}: use sharded_ddp='simple', or fsdp='full_shard', which work on this CPU."
        )
    if mode is None and chosen != ["simple"]:
        yield (
            f"sharded_ddp={' '.join(chosen)!r} needs zero_dp_2 or zero_dp_3 beside it, as in "
            f"'zero_dp_3 {' '.join(chosen)}'."
        )


FAIRSCALE = PluginInfo(
    name="fairscale",
    kind="strategy",
    summary="FairScale: optimizer state and gradients spread over processes, or on CUDA the weights as well.",
    implementation="drivetrain_plugins.strategy.fairscale.plugin:FairscalePlugin",
    options="drivetrain_plugins.strategy.fairscale.options:FairscaleOptions",
    arguments=(
        "sharded_ddp",
        "max_grad_norm",
        "gradient_accumulation_steps",
        "local_rank",
        "ddp_backend",
        "ddp_timeout",
    ),
    requires=("fairscale>=0.4.13",),
    extra="fairscale",
    chosen_by=_chosen,
    probe=_probe,
    shards=True,
)
