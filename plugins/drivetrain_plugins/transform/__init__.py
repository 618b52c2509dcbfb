"""Transforms of the model that come with drivetrain: what they say of themselves."""

from __future__ import annotations

from typing import Any

from drivetrain.plugin import Claim, PluginInfo


def _compiled(args: Any) -> Claim | None:
    for name in ("torchdynamo", "torch_compile_backend", "torch_compile_mode"):
        value = getattr(args, name, None)
        if value:
            return Claim(f"{name}={str(getattr(value, 'value', value))!r}")
    return Claim("torch_compile=True") if args.torch_compile else None


def _check_compile(args: Any) -> list[str]:
    from drivetrain_plugins.transform.backends import problems

    return problems(args)


def _checkpointed(args: Any) -> Claim | None:
    return Claim("gradient_checkpointing=True") if args.gradient_checkpointing else None


TORCH_COMPILE = PluginInfo(
    name="torch_compile",
    kind="transform",
    summary="Compiles what the strategy made of the model with torch.compile, in place.",
    implementation="drivetrain_plugins.transform.torch_compile:TorchCompile",
    options="drivetrain_plugins.transform.torch_compile:TorchCompileOptions",
    arguments=("torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo"),
    chosen_by=_compiled,
    probe=_check_compile,
    # After the wrapper: DistributedDataParallel splits the graph at its buckets, so that communication
    # overlaps the backward pass, only where it is itself compiled; FSDP asks for the same order.
    place="after_prepare",
    after=("gradient_checkpointing",),
)

GRADIENT_CHECKPOINTING = PluginInfo(
    name="gradient_checkpointing",
    kind="transform",
    summary="Recomputes activations in the backward pass: less memory for more time.",
    implementation="drivetrain_plugins.transform.gradient_checkpointing:GradientCheckpointing",
    options="drivetrain_plugins.transform.gradient_checkpointing:GradientCheckpointingOptions",
    arguments=("gradient_checkpointing",),
    chosen_by=_checkpointed,
    place="before_wrap",
    before=("torch_compile",),
)
