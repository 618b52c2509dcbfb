"""What optimizers of other libraries say of a machine that lacks what they need. Light."""

from __future__ import annotations

from typing import Any

_INSTEAD = "use optim='adamw_torch_fused', which is torch's own"


def apex(args: Any) -> str | None:
    """NVIDIA's apex is found by its module: the index has another package of that name."""
    try:
        from apex.optimizers import FusedAdam  # noqa: F401
    except ImportError:
        return (
            "optim='adamw_apex_fused' needs NVIDIA's apex, which is built from its source on a machine with CUDA "
            f"(the package 'apex' that pip knows is another), and it is not here: {_INSTEAD}."
        )
    import torch

    if not torch.cuda.is_available() or args.use_cpu:
        return f"optim='adamw_apex_fused' needs a CUDA device, and this run has none: {_INSTEAD}."
    return None


def npu(args: Any) -> str | None:
    """torch_npu is there (it is required), and so must be a device."""
    try:
        import torch_npu

        found = bool(torch_npu.npu.is_available())
    except Exception as error:  # it fails in many ways where Ascend's own libraries are missing
        return (
            f"optim='adamw_torch_npu_fused': torch_npu cannot be loaded here ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): {_INSTEAD}."
        )
    return (
        None
        if found
        else f"optim='adamw_torch_npu_fused' needs an NPU, and this machine has none: {_INSTEAD}."
    )


def xla(args: Any) -> str | None:
    """torch_xla is there (it is required), and so must be a device."""
    try:
        from torch_xla.amp import syncfree  # noqa: F401
        from torch_xla.core import xla_model

        found = bool(xla_model.get_xla_supported_devices())
    except Exception as error:  # it fails in many ways where there is no device
        return (
            f"optim='adamw_torch_xla': torch_xla cannot be used here ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): {_INSTEAD}."
        )
    return (
        None
        if found
        else f"optim='adamw_torch_xla' needs an XLA device, and this machine has none: {_INSTEAD}."
    )
