"""DeepSpeed itself: imported for the run's device, quietly, and connected to the run's process group."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from drivetrain.errors import ConfigurationError
from drivetrain_plugins import gloo

_ACCELERATOR = "DS_ACCELERATOR"
_SHARED_MEMORY_OP = "deepspeed_shm_comm"
# torch's newest names for what DeepSpeed calls at every step by the older ones.
_RENAMED = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.jit, whose decorators DeepSpeed still uses
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
    gloo.settle()


def _not_of_untested(record: logging.LogRecord) -> bool:
    """The optimizer has been tried out; DeepSpeed only knows its own list."""
    return "untested optimizer" not in str(record.msg)


class Quiet:
    """Leaves out what torch has to say to DeepSpeed's authors, from `begin` to `end`, and what is known here."""

    def __init__(self) -> None:
        self._filter: Any = None

    def begin(self) -> None:
        """Adds a filter of warnings."""
        warnings.filterwarnings("ignore", _RENAMED, FutureWarning)
        self._filter = warnings.filters[0]
        logging.getLogger("DeepSpeed").addFilter(_not_of_untested)

    def end(self) -> None:
        """Takes it out again."""
        if self._filter is not None and self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
        self._filter = None
        logging.getLogger("DeepSpeed").removeFilter(_not_of_untested)
