"""What torchrun, srun and mpiexec tell a process of its place among the others. Imports no torch."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from drivetrain.errors import ConfigurationError

TORCHRUN_PORT = 29500  # torchrun's own default
# A port derived from a job's number is below those that Linux gives to outgoing connections.
_LOWEST, _PORTS = 15000, 15000

MPIS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH2
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, Cray
)
_MPI_LOCAL_RANK = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PMI_LOCAL_RANK",
)
_MPI_LOCAL_SIZE = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "PMI_LOCAL_SIZE",
)


@dataclass(frozen=True)
class Place:
    """A process among the others, as its launcher's environment tells it.

    Attributes:
        rank, size: number of the process, and how many there are.
        local_rank, local_size: the same on its machine; the size is None where it is not told.
        node: number of the machine.
        address, port: where rank 0 is to be found.
        through_store: torchrun's agent holds a store at that address; rank 0 tells there where it is.
        run: an id of the run, by which two runs at one address are told apart; None where there is none.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    node: int
    address: str
    port: int
    through_store: bool = False
    run: str | None = None


def started_by(environment: Mapping[str, str] = os.environ) -> tuple[str | None, str]:
    """The launcher that this environment is of, and by which variables it is known.

    torchrun comes first, since it may have been started by srun; then mpiexec, which may start its daemons by srun.
    """
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        return "torchrun", "RANK, WORLD_SIZE and MASTER_ADDR are set"
    in_step = all(name in environment for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
    for rank, size in MPIS:
        if rank in environment and size in environment:
            tasks = environment.get("SLURM_PROCID"), environment.get("SLURM_STEP_NUM_TASKS")
            if rank == "PMI_RANK" and in_step and tasks == (environment[rank], environment[size]):
                break  # srun speaks PMI too
            return "mpi", f"{rank} and {size} are set"
    if in_step:
        return "slurm", "SLURM_PROCID and SLURM_STEP_NUM_TASKS are set"
    return None, ""


def torchrun(environment: Mapping[str, str] = os.environ) -> Place:
    """By RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    rank, size = _rank_and_size(environment, "RANK", "WORLD_SIZE")
    run = environment.get("TORCHELASTIC_RUN_ID", "none")
    return Place(
        rank,
        size,
        local_rank=_number(environment, ("LOCAL_RANK",), rank),
        local_size=_number(environment, ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"), None),
        node=_number(environment, ("GROUP_RANK", "CROSS_RANK"), 0),
        address=environment["MASTER_ADDR"],
        port=_number(environment, ("MASTER_PORT",), TORCHRUN_PORT),
        through_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        run=None if run == "none" else run,
    )


def slurm(environment: Mapping[str, str] = os.environ) -> Place:
    """By the variables of srun's step; rank 0 is on the first of its nodes.

    Raises:
        ConfigurationError: the variables do not fit together.
    """
    rank, size = _rank_and_size(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    node = _number(environment, ("SLURM_NODEID",), 0)
    per_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    nodes = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    address = environment.get("MASTER_ADDR") or nodes or environment.get("SLURM_LAUNCH_NODE_IPADDR")
    if per_node == [size]:
        address = environment.get("MASTER_ADDR") or "127.0.0.1"
    if not address:
        raise ConfigurationError(
            "Neither SLURM_STEP_NODELIST nor SLURM_LAUNCH_NODE_IPADDR says where rank 0 is: set MASTER_ADDR to the "
            "name of its node."
        )
    run = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return Place(
        rank,
        size,
        local_rank=_number(environment, ("SLURM_LOCALID",), rank),
        local_size=per_node[node] if node < len(per_node) else None,
        node=node,
        address=address,
        port=_number(environment, ("MASTER_PORT",), port_of(run)),
        run=run,
    )


def mpi(environment: Mapping[str, str] = os.environ) -> Place:
    """By the variables of Open MPI, MVAPICH, or of PMI (MPICH, Intel MPI).

    Raises:
        ConfigurationError: there are several machines, and nothing says which one rank 0 is on.
    """
    names = next(names for names in MPIS if all(name in environment for name in names))
    rank, size = _rank_and_size(environment, *names)
    local_size = _number(environment, (*_MPI_LOCAL_SIZE,), None)
    local_rank = _number(environment, (*_MPI_LOCAL_RANK, "SLURM_LOCALID"), None)
    address = environment.get("MASTER_ADDR")
    if address is None and local_size == size:
        address = "127.0.0.1"
    address = address or _first_of_the_job(environment)
    if address is None:
        raise ConfigurationError(
            f"mpiexec started {size} processes on several machines and does not say where rank 0 is: set MASTER_ADDR "
            "to the name of its machine on all of them (Open MPI: mpirun -x MASTER_ADDR=HOST; MPICH and Intel MPI: "
            "mpiexec -genv MASTER_ADDR HOST)."
        )
    run = next(
        (
            environment[name]
            for name in (
                "PMIX_NAMESPACE",
                "OMPI_MCA_ess_base_jobid",
                "PBS_JOBID",
                "LSB_JOBID",
                "SLURM_JOB_ID",
            )
            if environment.get(name)
        ),
        None,
    )
    if run is None and local_size == size:
        run = f"process {os.getppid()}"  # all of them are children of one daemon
    return Place(
        rank,
        size,
        local_rank=rank if local_rank is None else local_rank,
        local_size=local_size,
        node=rank // local_size if local_size else 0,
        address=address,
        port=_number(environment, ("MASTER_PORT",), port_of(run) if run else TORCHRUN_PORT),
        run=run,
    )


def port_of(job: str) -> int:
    """A port that all processes of a job derive alike, and that two jobs rarely share."""
    return _LOWEST + zlib.crc32(job.encode()) % _PORTS


def first_host(nodes: str) -> str | None:
    """The first host of a list in SLURM's form: `gpu[003-007,9],login1` begins with gpu003."""
    match = re.match(r"([^,\[\]]*)(?:\[(\w+)[^\]]*\])?([^,\[\]]*)", nodes.strip())
    return "".join(part or "" for part in match.groups()) or None if match else None


def tasks_per_node(counts: str) -> list[int]:
    """Tasks on each node, from SLURM's form: `2(x3),1` is [2, 2, 2, 1]; empty where it is not told."""
    found: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        found += [int(tasks)] * int(times or 1)
    return found


def _first_of_the_job(environment: Mapping[str, str]) -> str | None:
    """Where the queue of the job says which hosts it has: SLURM, PBS, Grid Engine, LSF."""
    if nodes := environment.get("SLURM_JOB_NODELIST"):
        return first_host(nodes)
    for name in ("PBS_NODEFILE", "PE_HOSTFILE"):
        path = environment.get(name)
        if path and Path(path).is_file() and (words := Path(path).read_text(encoding="utf-8").split()):
            return words[0]
    hosts = environment.get("LSB_HOSTS", "").split()
    return hosts[0] if hosts else None


def _rank_and_size(environment: Mapping[str, str], rank_name: str, size_name: str) -> tuple[int, int]:
    problems = [
        f"{name}={environment[name]!r} is no number; the launcher sets it."
        for name in (rank_name, size_name)
        if not environment[name].isdigit()
    ]
    if problems:
        raise ConfigurationError(problems)
    rank, size = int(environment[rank_name]), int(environment[size_name])
    if rank >= size:
        raise ConfigurationError(
            f"{rank_name}={rank} does not fit {size_name}={size}: ranks go from 0 to {size - 1}."
        )
    return rank, size


@overload
def _number(environment: Mapping[str, str], names: Sequence[str], default: int) -> int: ...
@overload
def _number(environment: Mapping[str, str], names: Sequence[str], default: None) -> int | None: ...
def _number(environment: Mapping[str, str], names: Sequence[str], default: int | None) -> int | None:
    """The first of some variables that holds a number."""
    return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), default)
