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

    Args:
        seed: as for `set_seed`.
        warn_only: an operation that has no deterministic kernel is a warning, in place of torch's `RuntimeError`.

    Returns:
        A function that puts torch's settings back as they were; the random generators keep their course.
    """
    set_seed(seed)
    return deterministic_kernels(warn_only)


def deterministic_kernels(warn_only: bool = False) -> Callable[[], None]:
    """Asks torch for kernels that give the same bits each time.

    Returns:
        A function that puts torch's settings and the environment back as they were.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get(CUBLAS_WORKSPACE),
    )
    _deterministic_kernels(warn_only)

    def restore() -> None:
        enabled, warned, deterministic, benchmark, workspace = before
        torch.use_deterministic_algorithms(enabled, warn_only=warned)
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
        else:
            os.environ[CUBLAS_WORKSPACE] = workspace

    return restore


def _deterministic_kernels(warn_only: bool) -> None:
    # Either of cuBLAS's two sizes is deterministic. It is read when cuBLAS is first used, and torch refuses to
    # multiply without it.
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
