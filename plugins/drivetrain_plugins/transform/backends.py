"""Which backends and modes of torch.compile this torch has, and which this machine can run."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from typing import Any

from drivetrain.errors import did_you_mean

# These run what was captured as it is. torch's graphs leave it to AOTAutograd, which all others go through, to
# draw a checkpointed block's random numbers again: without it dropout has another mask in the backward pass.
EAGER = ("eager", "eager_debug", "eager_noexcept", "pre_dispatch_eager")
REDRAWING = ("inductor", "cudagraphs", "openxla")
# Older spellings, and torch's own.
_RENAMED = {"aot_cudagraphs": "cudagraphs"}


def chosen(args: Any) -> tuple[str, str | None]:
    """The backend and the mode that the arguments ask for."""
    wanted = args.torch_compile_backend or args.torchdynamo or "inductor"
    backend = str(getattr(wanted, "value", wanted)).lower()
    mode = args.torch_compile_mode
    return _RENAMED.get(backend, backend), str(mode) if mode else None


def problems(args: Any) -> list[str]:
    """Why the arguments cannot be met here, one sentence each; empty where they can."""
    import torch._dynamo

    if args.torch_compile_backend == "ipex" and importlib.util.find_spec("intel_extension_for_pytorch"):
        importlib.import_module("intel_extension_for_pytorch")  # which makes it known

    given = args.torch_compile_backend or args.torchdynamo or "inductor"
    given = str(getattr(given, "value", given))
    backend, mode = chosen(args)
    found: list[str] = []
    known = sorted(torch._dynamo.list_backends(exclude_tags=()))
    if backend not in known:
        found.append(
            f"torch_compile_backend={given!r} is not a backend of this torch ({torch.__version__})."
            f"{did_you_mean(backend, known)} It has: {', '.join(known)}."
        )
    elif backend in EAGER and args.gradient_checkpointing:
        found.append(
            f"torch_compile_backend={given!r} does not draw the random numbers of checkpointed blocks again, so that "
            "gradients are wrong under dropout: with gradient_checkpointing=True use 'aot_eager' or 'inductor'."
        )
    elif backend == "cudagraphs" and (args.use_cpu or not torch.cuda.is_available()):
        found.append(
            f"torch_compile_backend={given!r} needs a CUDA device, and "
            f"{'use_cpu=True rules it out' if args.use_cpu else 'this machine has none'}. "
            "Use torch_compile_backend='inductor'."
        )
    elif backend in ("openxla", "tvm"):
        package = {"openxla": "torch_xla", "tvm": "tvm"}[backend]
        if importlib.util.find_spec(package) is None:
            found.append(
                f"torch_compile_backend={given!r} needs {package}, which is not installed. "
                "Use torch_compile_backend='inductor'."
            )
    elif backend == "inductor":
        found.extend(_inductor(args))
    if mode is not None:
        found.extend(_mode(backend, mode))
    return found


def redraws(backend: str) -> bool:
    """Whether a backend is known to draw the random numbers of checkpointed blocks again."""
    return backend.startswith("aot_") or backend in REDRAWING


def _mode(backend: str, mode: str) -> list[str]:
    import torch._inductor

    modes = sorted(torch._inductor.list_mode_options())
    if mode not in modes:
        return [
            f"torch_compile_mode={mode!r} is not a mode of this torch.{did_you_mean(mode, modes)} "
            f"It has: {', '.join(modes)}."
        ]
    if backend != "inductor" and mode != "default":
        return [
            f"torch_compile_mode={mode!r} is a mode of the backend 'inductor' alone, and "
            f"torch_compile_backend is {backend!r}. Leave one of them out."
        ]
    return []


def _inductor(args: Any) -> list[str]:
    import torch

    if args.use_cpu or not torch.cuda.is_available():
        if _cpp_compiler() is None:
            return [
                "torch_compile_backend='inductor' needs a C++ compiler on a CPU, and none was found. "
                "Install g++, or use torch_compile_backend='aot_eager'."
            ]
    elif importlib.util.find_spec("triton") is None:
        return [
            "torch_compile_backend='inductor' needs triton on a CUDA device, and it is not installed. "
            "Run: pip install triton"
        ]
    return []


def _cpp_compiler() -> str | None:
    import os

    for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl"):
        if name and shutil.which(name):
            return name
    return None
