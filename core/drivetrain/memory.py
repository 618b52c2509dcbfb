"""Out of memory: how such an error is known, and what is given back after one."""

from __future__ import annotations

import errno
import gc

import torch

from drivetrain.errors import DrivetrainError

# torch raises OutOfMemoryError on devices; the host's allocator and the libraries below torch say it in words alone.
_WORDS = (
    "out of memory",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return type(error) in _SPOKEN and any(words in str(error) for words in _WORDS)


_SPOKEN = (RuntimeError, torch.AcceleratorError)


def give_back() -> None:
    """Frees what nothing refers to any more, and what the devices' allocators hold in reserve."""
    gc.collect()
    for device in (torch.cuda, torch.xpu):
        if device.is_available():
            device.empty_cache()


class BatchTooLarge(DrivetrainError):
    """A batch of an evaluation does not fit into memory, on this rank or on another.

    Args:
        rows: of the batch, on this rank.
        fed: how many batches `compute_metrics` had been fed.
    """

    def __init__(self, rows: int, fed: int) -> None:
        super().__init__(
            f"Out of memory with a batch of {rows} rows a device in an evaluation: lower per_device_eval_batch_size."
        )
        self.rows, self.fed = rows, fed
