"""Which process this is, of how many, and on which device: found once, at the first question.

One process needs nobody. For more the launcher slot makes the process group; the core knows no launcher by
name.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from drivetrain.errors import ConfigurationError, PluginError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("drivetrain.processes")

SIZE_VARIABLES = (
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
"""Where launchers say how many processes they have started: torchrun, the MPIs, srun. The first that is set
counts: torchrun may itself have been started by srun, and mpirun starts its daemons by it. What sbatch sets for
a script (SLURM_NTASKS) is no number of processes.
"""

LOCAL_SIZE_VARIABLES = (
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
)
"""Where they say how many of them are on this machine."""


@dataclass(frozen=True)
class Processes:
    """This process among the run's.

    Args:
        device: the `torch.device` that this process computes on.
        n_gpu: how many accelerators it uses, 0 or 1.
        wait: returns when every process has called it; a single process needs none.
        attempt: how often this launch has been started anew (a worker of torchrun died, SLURM requeued the job);
            the same on every process, and 0 at the first start.
        launch: names this launch, alike over its attempts and on every process; None where nothing tells one
            launch from another.
        local_world_size: how many of the processes are on this machine; None where it is not known.
        node: number of this machine among the run's; 0 where it is not known.
        renew: leaves the process group, in the midst of a collective of the others, and makes a new one together
            with them; told by which error this process leaves, empty for want of memory, None where it follows
            another. It is None where somebody else made the group.
    """

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    n_gpu: int = 0
    wait: Callable[[], None] | None = None
    attempt: int = 0
    launch: str | None = None
    local_world_size: int | None = None
    node: int = 0
    renew: Callable[[str | None], None] | None = None

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
    return first_number(SIZE_VARIABLES) or 1


def on_one_node() -> bool:
    """Whether all processes of this run are known to be on one machine, without making a process group."""
    here = _started.local_world_size if _started is not None else None
    return asked_for() == (here or first_number(LOCAL_SIZE_VARIABLES) or 1)


def first_number(names: Iterable[str]) -> int | None:
    """The first of some variables of the environment that holds a number."""
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdigit()), None)


def attempt_and_launch() -> tuple[int, str | None]:
    """What the environment of this process says of `Processes.attempt` and `Processes.launch`.

    A run of torchrun has an id where it was given one or draws one (`--standalone`), and else is told by the
    process of its agent; SLURM's job and step are the same when the job is requeued.
    """
    requeued = first_number(["SLURM_RESTART_COUNT"]) or 0
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        restarts = first_number(["TORCHELASTIC_RESTART_COUNT"]) or 0
        return restarts + requeued, _agent() if run == "none" else f"torchrun-{run}"
    job = os.environ.get("SLURM_JOB_ID")
    return (requeued, f"slurm-{job}.{os.environ.get('SLURM_STEP_ID', 'batch')}") if job else (0, None)


def _agent() -> str | None:
    """The process that started this one, by machine, number and time of its start; None where /proc has no word."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", encoding="utf-8") as file:
            started = file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"agent-{socket.gethostname()}-{parent}-{started}"


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
    attempt, launch = attempt_and_launch()
    device, n_gpu = _only_device(args)
    return Processes(device, n_gpu=n_gpu, attempt=attempt, launch=launch, local_world_size=1)


def _only_device(args: Any) -> tuple[torch.device, int]:
    """The device of a single process, and the number of accelerators that it uses."""
    import torch

    if args.use_cpu:
        return torch.device("cpu"), 0
    if torch.cuda.is_available():
        if (count := torch.cuda.device_count()) > 1:
            _tell_once(f"This process uses one of {count} CUDA devices; start one process for each.")
        return torch.device("cuda", torch.cuda.current_device()), 1
    if torch.backends.mps.is_available():
        return torch.device("mps"), 1
    if getattr(args, "use_mps_device", False):
        raise ConfigurationError(
            "use_mps_device=True needs Apple's GPU, and this machine has none: leave it out."
        )
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu", torch.xpu.current_device()), 1
    return torch.device("cpu"), 0


def _tell_once(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        logger.warning("%s", sentence)
