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


def _traced(args: Any) -> Claim | None:
    return Claim("jit_mode_eval=True") if args.jit_mode_eval else None


def _check_trace(args: Any) -> str | None:
    import torch

    if hasattr(torch.jit, "trace"):
        return None
    return f"jit_mode_eval=True needs torch.jit.trace, which torch {torch.__version__} has no more: leave it out."


def _by_ipex(args: Any) -> Claim | None:
    return Claim("use_ipex=True") if args.use_ipex else None


def _check_ipex(args: Any) -> list[str]:
    from drivetrain_plugins.transform.ipex import problems

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

_ORDINARY = (
    "the extension changes the optimizer of whole weights, which this strategy spreads: leave use_ipex out, or train "
    "with strategy='ddp'."
)

IPEX = PluginInfo(
    name="ipex",
    kind="transform",
    summary="Lets Intel's extension for PyTorch optimise optimizer and model, on torch 2.8.",
    implementation="drivetrain_plugins.transform.ipex:IPEX",
    options="drivetrain_plugins.transform.ipex:IPEXOptions",
    arguments=("use_ipex",),
    chosen_by=_by_ipex,
    probe=_check_ipex,
    # It is given the optimizer, which the strategy builds.
    place="after_prepare",
    before=("torch_compile", "jit"),
    conflicts={f"strategy:{name}": _ORDINARY for name in ("fsdp", "deepspeed", "fairscale")},
)

_WHOLE = "a trace needs whole weights on each process, which this strategy spreads: leave jit_mode_eval out."

JIT = PluginInfo(
    name="jit",
    kind="transform",
    summary="Evaluates and predicts by a trace of the model (torch.jit), checked against the model itself.",
    implementation="drivetrain_plugins.transform.jit:JIT",
    arguments=("jit_mode_eval",),
    chosen_by=_traced,
    probe=_check_trace,
    # After torch.compile, which serves training then: an evaluation is traced.
    place="after_prepare",
    after=("torch_compile", "ipex"),
    conflicts={f"strategy:{name}": _WHOLE for name in ("fsdp", "deepspeed", "fairscale")},
)
