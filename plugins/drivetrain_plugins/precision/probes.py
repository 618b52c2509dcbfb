"""Why a precision cannot do here what the arguments ask, in sentences."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from drivetrain import settings

# TensorFloat-32 and bfloat16 came with this generation of NVIDIA's GPUs (Ampere).
_AMPERE = 8
# Products in float8 came with this one (Ada, and Hopper after it).
_ADA = (8, 9)


def _cuda(args: Any) -> bool:
    """Whether the run will be on a CUDA device. Asks torch: `args.device` would make the process group."""
    return torch.cuda.is_available() and not args.use_cpu


def _where(args: Any) -> str:
    if args.use_cpu:
        return "and use_cpu=True keeps this run on the CPU"
    return "and this machine has none"


def _ampere(args: Any) -> bool:
    return _cuda(args) and torch.version.hip is None and torch.cuda.get_device_capability()[0] >= _AMPERE


def fp32(args: Any) -> Iterator[str]:
    """What every precision must check: TF32 and half evaluation."""
    if args.tf32 and not _ampere(args):
        yield (
            f"tf32=True needs a CUDA device of the Ampere generation or later, {_where(args)}. "
            "Leave tf32 out."
        )
    if args.fp16_full_eval and not _cuda(args):
        yield (
            f"fp16_full_eval=True needs a CUDA device, {_where(args)}. "
            "Use bf16_full_eval=True, which works on this CPU."
        )


def _apex(word: str) -> str:
    """The sentence about apex. There is another package of that name, without mixed precision."""
    try:
        installed = importlib.util.find_spec("apex.amp") is not None
    except Exception:  # the other one's own code runs when it is looked into
        installed = False
    cure = f"with {word}=True leave half_precision_backend at 'auto', torch's autocast, which is what O1 was."
    if installed:
        return f"half_precision_backend='apex' is not driven by drivetrain, since apex has given up apex.amp: {cure}"
    return (
        "half_precision_backend='apex' needs apex.amp, which is not installed, and which apex has given up: "
        f"{cure}"
    )


def _backend(args: Any, word: str) -> Iterator[str]:
    backend = str(getattr(args.half_precision_backend, "value", args.half_precision_backend))
    if backend == "apex":
        yield _apex(word)
    if backend == "cuda_amp" and not _cuda(args):
        yield (
            f"half_precision_backend='cuda_amp' needs a CUDA device, {_where(args)}. "
            "Leave half_precision_backend at 'auto'."
        )
    if backend == "cpu_amp" and _cuda(args):
        yield (
            "half_precision_backend='cpu_amp' is for the CPU, and this run is on a CUDA device. "
            "Leave half_precision_backend at 'auto', or set use_cpu=True."
        )


def bf16(args: Any) -> Iterator[str]:
    """bfloat16: any CPU, CUDA devices that have it."""
    yield from fp32(args)
    yield from _backend(args, "bf16")
    if _cuda(args) and not torch.cuda.is_bf16_supported():
        yield (
            "bf16=True needs a CUDA device of the Ampere generation or later. "
            "Use fp16=True, which works on this one."
        )


def fp16(args: Any) -> Iterator[str]:
    """float16: CUDA alone, as in transformers 4.34.0, though torch's autocast has it on CPUs by now."""
    yield from fp32(args)
    yield from _backend(args, "fp16")
    if not _cuda(args):
        yield f"fp16=True needs a CUDA device, {_where(args)}. Use bf16=True, which works on this CPU."


def float8(args: Any) -> Iterator[str]:
    """float8: CUDA devices that have units for it, unless it is emulated."""
    yield from fp32(args)
    if _options(args, "float8").get("emulate"):
        return
    cure = "Use bf16=True, or for a test plugins={'float8': {'emulate': True}}."
    if not _cuda(args):
        yield f"precision='float8' needs a CUDA device of the Ada generation or later, {_where(args)}. {cure}"
    elif torch.version.hip is None and torch.cuda.get_device_capability() < _ADA:
        yield f"precision='float8' needs a CUDA device of the Ada generation or later, and this one is older. {cure}"


def _options(args: Any, name: str) -> dict[str, Any]:
    """A plugin's options, of this run or of the project's file."""
    given = args.plugins if isinstance(args.plugins, dict) else {}
    return dict(settings.load().options.get(name, {})) | dict(given.get(name, {}))
