"""What accelerators can do at most: dense floating-point operations a second, from their makers' data sheets."""

from __future__ import annotations

import torch

# By a part of the device's name, the longer names first: half precision (bf16, fp16), TF32, fp32; in 1e12.
_PEAKS: tuple[tuple[str, float, float, float], ...] = (
    ("H100 PCIe", 756, 378, 51),
    ("H100 NVL", 835, 417, 60),
    ("GH200", 989, 494, 67),
    ("H200", 989, 494, 67),
    ("H100", 989, 494, 67),
    ("A100", 312, 156, 19.5),
    ("L40S", 362, 183, 91.6),
    ("A10G", 70, 35, 31.2),
    ("A10", 125, 62.5, 31.2),
    ("L4", 121, 60, 30.3),
    ("V100", 125, 15.7, 15.7),
    ("T4", 65, 8.1, 8.1),
)


def peak(device: torch.device, compute: torch.dtype | None) -> float | None:
    """The peak of a device for matrix products in a dtype; None where it is not known.

    Args:
        device: whose name is looked up.
        compute: the dtype of the products; None for that of the weights, fp32.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, half, tf32, single in _PEAKS:
        if part in name:
            if compute in (torch.bfloat16, torch.float16):
                return half * 1e12
            return (tf32 if torch.backends.cuda.matmul.allow_tf32 else single) * 1e12
    return None
