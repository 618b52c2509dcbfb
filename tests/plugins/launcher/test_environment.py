"""What launchers' environments say, without starting anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from drivetrain import ConfigurationError
from drivetrain.processes import asked_for, attempt_and_launch, on_one_node
from drivetrain_plugins.launcher import environment
from drivetrain_plugins.launcher.environment import first_host, started_by, tasks_per_node

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "1234"}
STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[007-008,011]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}
# What a script of sbatch sees on its first node, whatever --ntasks says.
SBATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MVAPICH = {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        (TORCHRUN, "torchrun"),
        (STEP, "slurm"),
        (HYDRA, "mpi"),
        (OPENMPI, "mpi"),
        (MVAPICH, "mpi"),
        (SBATCH, None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, None),
        (STEP | TORCHRUN, "torchrun"),  # srun started torchrun
        (STEP | OPENMPI, "mpi"),  # mpirun started its daemons by srun
        (STEP | {"PMI_RANK": "5", "PMI_SIZE": "6"}, "slurm"),  # srun --mpi=pmi2
        (STEP | {"PMI_RANK": "9", "PMI_SIZE": "12"}, "mpi"),  # mpiexec of MPICH, whose proxies srun started
    ],
)
def test_who_started_this(variables, launcher):
    assert started_by(variables)[0] == launcher


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        (TORCHRUN, 4),
        (STEP, 6),
        (HYDRA, 2),
        (OPENMPI, 4),
        (MVAPICH, 2),
        (SBATCH, 1),
        (STEP | {"WORLD_SIZE": "1", "RANK": "0"}, 1),  # a torchrun of one process in each of six tasks
        ({}, 1),
    ],
)
def test_how_many_there_are(monkeypatch, variables, count):
    for name in {**TORCHRUN, **STEP, **SBATCH, **HYDRA, **OPENMPI, **MVAPICH}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert asked_for() == count
    assert on_one_node() == (count == 1 or variables in (HYDRA, MVAPICH))


def test_a_place_by_torchrun():
    place = environment.torchrun(TORCHRUN | {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"})
    assert (place.rank, place.size, place.local_rank, place.local_size, place.node) == (3, 4, 1, 2, 1)
    assert (place.address, place.port, place.through_store) == ("node1", 1234, False)
    assert environment.torchrun(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).through_store
    without_port = {name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"}
    assert environment.torchrun(without_port).port == 29500


def test_a_place_by_srun():
    place = environment.slurm(STEP)
    assert (place.rank, place.size, place.local_rank, place.local_size, place.node) == (5, 6, 1, 2, 2)
    assert place.address == "gpu007"  # rank 0's, and not the machine that srun was called on
    assert 15000 <= place.port < 30000
    assert place.port == environment.slurm(STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).port
    assert place.port != environment.slurm(STEP | {"SLURM_STEP_ID": "3"}).port
    given = environment.slurm(STEP | {"MASTER_ADDR": "here", "MASTER_PORT": "1111"})
    assert (given.address, given.port) == ("here", 1111)
    alone = environment.slurm(STEP | {"SLURM_STEP_TASKS_PER_NODE": "6", "SLURM_NODEID": "0"})
    assert alone.address == "127.0.0.1"
    nowhere = {name: value for name, value in STEP.items() if "NODELIST" not in name and "IPADDR" not in name}
    with pytest.raises(ConfigurationError, match="says where rank 0 is: set MASTER_ADDR"):
        environment.slurm(nowhere)


def test_a_place_by_mpiexec(tmp_path):
    place = environment.mpi(HYDRA)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (1, 2, 1, 2)
    assert place.address == "127.0.0.1"
    with pytest.raises(ConfigurationError, match="mpirun -x MASTER_ADDR=HOST"):
        environment.mpi(OPENMPI)
    place = environment.mpi(OPENMPI | {"MASTER_ADDR": "node1"})
    assert (place.rank, place.size, place.local_rank, place.local_size, place.node) == (2, 4, 0, 2, 1)
    nodes = tmp_path / "nodes"
    nodes.write_text("first\nfirst\nsecond\nsecond\n")
    assert environment.mpi(OPENMPI | {"PBS_NODEFILE": str(nodes)}).address == "first"
    assert environment.mpi(OPENMPI | {"SLURM_JOB_NODELIST": "a[3,5],b"}).address == "a3"
    assert environment.mpi(OPENMPI | {"LSB_HOSTS": "one one two two"}).address == "one"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "4"}, "RANK=4 does not fit WORLD_SIZE=4: ranks go from 0 to 3."),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' is no number; the launcher sets it."),
    ],
)
def test_numbers_that_do_not_fit(variables, sentence):
    with pytest.raises(ConfigurationError) as caught:
        environment.torchrun(TORCHRUN | variables)
    assert caught.value.problems == (sentence,)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-007,9],login1", "gpu003"),
        ("login1,gpu[1-2]", "login1"),
        ("n[1-2]-ib", "n1-ib"),
        ("alone", "alone"),
        ("", None),
    ],
)
def test_the_first_host(nodes, host):
    assert first_host(nodes) == host


def test_tasks_per_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("") == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, None)),
        ({"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "abc"}, (2, "torchrun-abc")),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, (0, "slurm-7.0")),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, (1, "slurm-7.batch")),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_RESTART_COUNT": "1",
                "TORCHELASTIC_RESTART_COUNT": "1",
                "TORCHELASTIC_RUN_ID": "7",
            },
            (2, "torchrun-7"),
        ),
    ],
)
def test_attempt_and_launch(monkeypatch, variables, expected):
    for name in (
        "TORCHELASTIC_RESTART_COUNT",
        "TORCHELASTIC_RUN_ID",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "SLURM_RESTART_COUNT",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert attempt_and_launch() == expected


def test_reading_the_environment_imports_no_torch():
    code = "import sys, drivetrain_plugins.launcher, drivetrain_plugins.launcher.environment; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
