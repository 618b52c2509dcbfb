"""Precisions. Light: says what there is, and imports torch only to probe a precision that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight

_HERE = "drivetrain_plugins.precision"
# Any precision serves these, besides what chooses it.
_SHARED = ("precision", "tf32", "bf16_full_eval", "fp16_full_eval")


def _fp32_claim(args: Any) -> Claim:
    return Claim("no other precision was asked for", Weight.DEFAULT)


def _bf16_claim(args: Any) -> Claim | None:
    return Claim("bf16=True") if args.bf16 else None


def _fp16_claim(args: Any) -> Claim | None:
    return Claim("fp16=True") if args.fp16 else None


def _probe(check: str) -> Callable[[Any], Iterator[str]]:
    def probe(args: Any) -> Iterator[str]:
        from drivetrain.plugin import import_string

        problems: Iterator[str] = import_string(f"{_HERE}.probes:{check}")(args)
        return problems

    return probe


FP32 = PluginInfo(
    name="fp32",
    kind="precision",
    summary="numbers as the model holds them, no autocast",
    implementation=f"{_HERE}.fp32:FP32",
    arguments=_SHARED,
    chosen_by=_fp32_claim,
    probe=_probe("fp32"),
)
BF16 = PluginInfo(
    name="bf16",
    kind="precision",
    summary="autocast to bfloat16 over the model's own weights, on CPU and CUDA",
    implementation=f"{_HERE}.bf16:BF16",
    arguments=(*_SHARED, "bf16", "half_precision_backend"),
    chosen_by=_bf16_claim,
    probe=_probe("bf16"),
)
FP16 = PluginInfo(
    name="fp16",
    kind="precision",
    summary="autocast to float16 with loss scaling, on CUDA",
    implementation=f"{_HERE}.fp16:FP16",
    options=f"{_HERE}.options:LossScaleOptions",
    arguments=(*_SHARED, "fp16", "half_precision_backend"),
    chosen_by=_fp16_claim,
    probe=_probe("fp16"),
)
_UNKNOWN = "torchao's layers are tried under single, ddp and fsdp alone: use one of them, or bf16=True."
FLOAT8 = PluginInfo(
    name="float8",
    kind="precision",
    summary="products of linear layers in float8 by torchao, the rest as bf16",
    implementation=f"{_HERE}.float8:Float8",
    options=f"{_HERE}.float8:Float8Options",
    arguments=_SHARED,
    requires=("torchao>=0.11",),
    extra="torchao",
    probe=_probe("float8"),
    conflicts={f"strategy:{name}": _UNKNOWN for name in ("deepspeed", "fairscale", "xla")},
)
