"""Why `fsdp` cannot do what the arguments ask here. Runs when the strategy is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drivetrain_plugins.strategy.fsdp.options import read_settings


def problems(args: Any) -> Iterator[str]:
    """One sentence for each thing that cannot be."""
    import torch.distributed

    if not torch.distributed.is_available():
        yield "Strategy 'fsdp' needs torch.distributed, which this torch was built without: install another torch."
        return
    settings, wrong = read_settings(args)
    yield from wrong
    if settings.offload and (args.use_cpu or not torch.accelerator.is_available()):
        yield (
            "fsdp='offload' rests the weights in host memory while an accelerator computes, and this run is on the "
            "CPU: leave 'offload' out."
        )
    if settings.activation_checkpointing and args.gradient_checkpointing:
        yield (
            "fsdp_config's activation_checkpointing and gradient_checkpointing=True both compute activations again: "
            "keep one of them."
        )
    if settings.version == 1:
        if "reshard_after_forward" in settings.given:
            yield "fsdp_config's reshard_after_forward is version 2's: under fsdp_version=1 use fsdp='shard_grad_op'."
        if settings.mixed_precision.get("output_dtype"):
            yield "mixed_precision's output_dtype is version 2's: leave it out under fsdp_version=1."
    elif settings.mixed_precision.get("buffer_dtype"):
        yield "mixed_precision's buffer_dtype is version 1's: leave it out, or set fsdp_version=1."
    if settings.mixed_precision and (args.bf16 or args.fp16):
        word = "bf16" if args.bf16 else "fp16"
        yield (
            f"{word}=True is autocast over weights in float32, and fsdp_config's mixed_precision casts the weights: "
            "keep one of them."
        )
