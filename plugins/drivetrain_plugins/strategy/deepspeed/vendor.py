"""DeepSpeed itself: imported for the run's device, quietly, and connected to the run's process group."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from drivetrain.errors import ConfigurationError

_ACCELERATOR = "DS_ACCELERATOR"
_SHARED_MEMORY_OP = "deepspeed_shm_comm"


def load(device: torch.device, level: int) -> Any:
    """The module `deepspeed`, whose accelerator is that of the device.

    DeepSpeed asks once, at its first import, what the machine has. A run on the CPU must tell it before.

    Args:
        device: what the run computes on.
        level: of DeepSpeed's logger.

    Raises:
        ConfigurationError: DeepSpeed was imported before, for another device.
    """
    set_here = device.type == "cpu" and _ACCELERATOR not in os.environ
    if set_here:
        os.environ[_ACCELERATOR] = "cpu"
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        found = get_accelerator().device_name()
    finally:
        if set_here:
            del os.environ[_ACCELERATOR]
    if found.partition(":")[0] != device.type:
        raise ConfigurationError(
            f"DeepSpeed was imported for the device '{found}', and this run is on '{device.type}': set "
            f"{_ACCELERATOR}={device.type} in the environment before the script starts."
        )
    logging.getLogger("DeepSpeed").setLevel(level)
    return deepspeed


def connect(vendor: Any) -> None:
    """Lets DeepSpeed use the process group that stands.

    On a CPU its first connection would compile an operator for collectives of inference, which training does
    not call; it is left out, so that a machine without a compiler trains.
    """
    if vendor.comm.is_initialized():
        return
    with _without_op(vendor):
        vendor.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


@contextmanager
def _without_op(vendor: Any) -> Iterator[None]:
    compatible = getattr(vendor.ops, "__compatible_ops__", {})
    before = compatible.get(_SHARED_MEMORY_OP)
    if before:
        compatible[_SHARED_MEMORY_OP] = False
    try:
        yield
    finally:
        if before:
            compatible[_SHARED_MEMORY_OP] = before


def disconnect(vendor: Any) -> None:
    """Ends the process group through DeepSpeed, which then drops the groups that it made of it."""
    vendor.comm.destroy_process_group()
    vendor.comm.comm.cdb = None
