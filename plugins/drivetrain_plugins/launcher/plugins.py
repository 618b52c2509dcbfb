"""The launchers: each reads its own environment, and all make the group in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.plugin import hookimpl
from drivetrain.processes import Processes
from drivetrain_plugins.launcher import environment
from drivetrain_plugins.launcher.environment import Place
from drivetrain_plugins.launcher.group import start


class GroupLauncher:
    """Makes the process group of the place that the environment tells.

    Args:
        read: gives the place.
    """

    def __init__(self, read: Callable[[], Place]) -> None:
        self.read = read

    def start(self, args: Any) -> Processes:
        """Makes the process group, and chooses this process's device.

        Raises:
            ConfigurationError: on every rank alike: the environment does not fit, `ddp_backend` is not in this
                torch, there are fewer devices than processes, or the port is somebody else's.
            ProcessError: somebody did not come within `ddp_timeout`.
        """
        return start(self.read(), args)


class Torchrun:
    """The launcher `torchrun`."""

    @hookimpl
    def make_launcher(self, args: Any) -> GroupLauncher:
        """One for each process."""
        return GroupLauncher(environment.torchrun)


class Slurm:
    """The launcher `slurm`."""

    @hookimpl
    def make_launcher(self, args: Any) -> GroupLauncher:
        """One for each process."""
        return GroupLauncher(environment.slurm)


class Mpi:
    """The launcher `mpi`."""

    @hookimpl
    def make_launcher(self, args: Any) -> GroupLauncher:
        """One for each process."""
        return GroupLauncher(environment.mpi)
