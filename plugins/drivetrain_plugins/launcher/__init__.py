"""Launchers: who started the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight
from drivetrain_plugins.launcher.environment import started_by

ARGUMENTS = ("ddp_backend", "ddp_timeout", "local_rank")


def _claims(name: str) -> Callable[[Any], Claim | None]:
    def claim(args: Any) -> Claim | None:
        by, reason = started_by()
        return Claim(reason, Weight.ENVIRONMENT) if by == name else None

    return claim


TORCHRUN = PluginInfo(
    name="torchrun",
    kind="launcher",
    summary="Processes started by torchrun, by DeepSpeed's launcher, or by anything that sets the same environment.",
    implementation="drivetrain_plugins.launcher.plugins:Torchrun",
    arguments=ARGUMENTS,
    chosen_by=_claims("torchrun"),
)

SLURM = PluginInfo(
    name="slurm",
    kind="launcher",
    summary="The tasks of a step of SLURM, started by srun.",
    implementation="drivetrain_plugins.launcher.plugins:Slurm",
    arguments=ARGUMENTS,
    chosen_by=_claims("slurm"),
)

MPI = PluginInfo(
    name="mpi",
    kind="launcher",
    summary="Processes started by mpiexec: Open MPI, MPICH, Intel MPI, MVAPICH.",
    implementation="drivetrain_plugins.launcher.plugins:Mpi",
    arguments=ARGUMENTS,
    chosen_by=_claims("mpi"),
)
