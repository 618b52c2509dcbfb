"""Which process this is, of how many, and on which device: found once, at the first question.

One process needs nobody. For more the launcher slot makes the process group; the core knows no launcher by
name.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from drivetrain.errors import ConfigurationError, PluginError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("drivetrain.processes")

SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes they have started: torchrun and the MPIs."""


@dataclass(frozen=True)
class Processes:
    """This process among the run's.

    Args:
        device: the `torch.device` that this process computes on.
        n_gpu: how many accelerators it uses, 0 or 1.
        wait: returns when every process has called it; a single process needs none.
    """

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    n_gpu: int = 0
    wait: Callable[[], None] | None = None

    def barrier(self) -> None:
        """Return when every process of the run is here."""
        if self.wait is not None:
            self.wait()


class Launcher(Protocol):
    """What this module asks of a launcher plugin. Whoever makes the process group ends it at exit."""

    def start(self, args: Any) -> Processes:
        """Make the process group, and say who is who."""
        ...


_launcher: Callable[[Any], Launcher] | None = None
_started: Processes | None = None
_starting = False
_told: set[str] = set()


def set_launcher(factory: Callable[[Any], Launcher] | None) -> None:
    """Let `factory(args)` give the launcher, whatever is installed and whatever the environment says."""
    global _launcher
    _launcher = factory
    forget()


def forget() -> None:
    """Drop what was found out, so that the next question asks again. The process group itself stays."""
    global _started
    _started = None


def asked_for() -> int:
    """How many processes this run has been started with, without making a process group."""
    if _started is not None:
        return _started.world_size
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    counts = [os.environ.get(name, "") for name in SIZE_VARIABLES]
    return max([1, *(int(count) for count in counts if count.isdigit())])


def on_one_node() -> bool:
    """Whether all processes of this run are known to be on one machine, without making a process group."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun says how many of them are
    return asked_for() == (int(here) if here.isdigit() else 1)


def current(args: Any) -> Processes:
    """The processes of the run of `args`; with several, the first call makes the process group.

    Raises:
        PluginError: the launcher itself asks.
        ConfigurationError: no installed launcher serves these processes, or the device asked for is not
        there.
    """
    global _started, _starting
    if _started is not None:
        return _started
    if _launcher is None and asked_for() <= 1:
        return _single(args)
    if _starting:
        raise PluginError(
            "The launcher asks for the processes that it is to make: it may read the environment."
        )
    _starting = True
    try:
        _started = _choose(args).start(args)
    finally:
        _starting = False
    return _started


def starting() -> bool:
    """Whether a launcher is at work on the process group at this moment."""
    return _starting


def _choose(args: Any) -> Launcher:
    if _launcher is not None:
        return _launcher(args)
    from drivetrain.resolve import choose_launcher

    launcher: Launcher = choose_launcher(args)
    return launcher


def _single(args: Any) -> Processes:
    """One process on the first device there is. It is not kept: `use_cpu` may change between two runs."""
    import torch

    if args.use_cpu:
        return Processes(torch.device("cpu"))
    if torch.cuda.is_available():
        if (count := torch.cuda.device_count()) > 1:
            _tell_once(f"This process uses one of {count} CUDA devices; start one process for each.")
        return Processes(torch.device("cuda", torch.cuda.current_device()), n_gpu=1)
    if torch.backends.mps.is_available():
        return Processes(torch.device("mps"), n_gpu=1)
    if getattr(args, "use_mps_device", False):
        raise ConfigurationError(
            "use_mps_device=True needs Apple's GPU, and this machine has none: leave it out."
        )
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return Processes(torch.device("xpu", torch.xpu.current_device()), n_gpu=1)
    return Processes(torch.device("cpu"))


def _tell_once(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        logger.warning("%s", sentence)
