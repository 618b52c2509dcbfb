"""Seeds of every random generator a run draws from, and deterministic kernels."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seeds Python's `random`, numpy and torch, the latter on the CPU and on every device.

    Args:
        seed: any integer from 0; numpy, which takes 32 bits, gets its lower half.
        deterministic: ask for deterministic kernels too, as `full_determinism` does.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # the CPU, and CUDA, MPS and XPU where there are any
    if deterministic:
        _deterministic_kernels(warn_only=False)


def full_determinism(seed: int, warn_only: bool = False) -> Callable[[], None]:
    """Seeds everything and asks torch for deterministic kernels, which are slower.

    An operation that has no deterministic kernel raises torch's `RuntimeError`, which names it, or only warns
    with `warn_only`. cuBLAS reads its setting when CUDA starts, so call this before the first use of a GPU.

    Returns:
        A function that puts torch's settings back as they were; the random generators keep their course.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        {name: os.environ.get(name) for name in (CUBLAS_WORKSPACE, "CUDA_LAUNCH_BLOCKING")},
    )
    set_seed(seed)
    _deterministic_kernels(warn_only)

    def restore() -> None:
        enabled, warned, deterministic, benchmark, environment = before
        torch.use_deterministic_algorithms(enabled, warn_only=warned)
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = benchmark
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore


def _deterministic_kernels(warn_only: bool) -> None:
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")  # either of cuBLAS's two sizes is deterministic
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
