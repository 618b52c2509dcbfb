"""A worker is killed, all are started anew, and the run ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.by_hand import environment, free_port
from support.two_hosts import two_hosts

SCRIPT = str(Path(__file__).with_name("train_script.py"))
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
# Dropout, so that the random states must come back too; the weights are those of a run in two processes.
SETTINGS = {
    "save_strategy": "steps",
    "save_steps": 2,
    "dropout": 0.2,
    "ddp_timeout": 60,
    "save_total_limit": 2,
}
pytestmark = pytest.mark.slow


def start(commands: Sequence[Sequence[str]], timeout: float = 200, **variables: Any) -> list[str]:
    """Runs them at a time; what each wrote. Those that are late are killed, with all that they started."""
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**variables),
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        texts = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                # Workers are in sessions of their own; their agent ends them where it is asked to.
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(texts)[-6000:]
    return texts


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return found


def killed(folder: Path, rank: int = 1, step: int = 5, **others: Any) -> list[str]:
    folder.mkdir(exist_ok=True)
    acts = {"act": "kill", "rank": rank, "step": step, "marks": str(folder / "killed")}
    settings = {**SETTINGS, **acts, **others}
    return [SCRIPT, str(folder), json.dumps(settings)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed")
    port = str(free_port())
    words = [SCRIPT, str(folder), json.dumps(SETTINGS)]
    start([[*TORCHRUN, "--master-port", port, "--nproc-per-node", "2", *words]])
    weights: dict[str, torch.Tensor] = result(folder)["weights"]
    return weights


def assert_exact(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    found = result(folder)
    assert found["attempt"] == 1
    for name, tensor in weights.items():
        assert torch.equal(found["weights"][name], tensor), name


@pytest.mark.parametrize(
    ("how", "rank", "step"),
    [
        (["--standalone"], 1, 5),
        pytest.param(["--standalone"], 0, 8, marks=pytest.mark.soak),
        pytest.param(["--master-port", "PORT"], 1, 5, marks=pytest.mark.soak),
        pytest.param(["--master-port", "PORT"], 0, 8, marks=pytest.mark.soak),
    ],
)
def test_a_killed_worker(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], how: list[str], rank: int, step: int
) -> None:
    """torchrun as people call it, without the variable that gives each attempt a store of its own."""
    words = [str(free_port()) if word == "PORT" else word for word in how]
    (text,) = start(
        [[*TORCHRUN, *words, "--nproc-per-node", "2", "--max-restarts", "3", *killed(tmp_path, rank, step)]]
    )
    assert (tmp_path / "killed").is_dir()
    assert f"the run goes on from {tmp_path}/run/checkpoint-{(step - 1) // 2 * 2}" in text
    assert_exact(tmp_path, undisturbed)


@pytest.mark.soak
def test_a_checkpoint_of_another_launch_is_not_gone_on_from(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    """The folder holds a finished run of more steps; the killed one goes on from what it wrote itself."""
    words = [SCRIPT, str(tmp_path), json.dumps({**SETTINGS, "save_total_limit": None})]
    start([[*TORCHRUN, "--standalone", "--nproc-per-node", "2", *words]])
    (text,) = start(
        [
            [
                *TORCHRUN,
                "--standalone",
                "--nproc-per-node",
                "2",
                "--max-restarts",
                "1",
                *killed(tmp_path, step=5, save_total_limit=None),
            ]
        ]
    )
    assert f"the run goes on from {tmp_path}/run/checkpoint-4" in text
    assert_exact(tmp_path, undisturbed)


@pytest.mark.parametrize("shared", [True, False])
def test_two_hosts(tmp_path: Path, undisturbed: dict[str, torch.Tensor], shared: bool) -> None:
    """Two hosts train as two processes on one do, also where the second one's worker is killed.

    Where they share no folder, each goes on from its own.
    """
    folders = [tmp_path, tmp_path if shared else tmp_path / "second"]
    words = {"marks": str(tmp_path / "killed"), "save_on_each_node": not shared}
    with two_hosts() as hosts:
        commands = [
            host.command(
                *TORCHRUN,
                *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
                *(
                    "--rdzv-backend",
                    "c10d",
                    "--rdzv-endpoint",
                    f"{hosts[0].address}:29400",
                    "--rdzv-id",
                    "job",
                ),
                *("--rdzv-conf", f"is_host={int(host is hosts[0])}", "--local-addr", host.address),
                *killed(folder, rank=1, step=5, **words),
            )
            for host, folder in zip(hosts, folders, strict=True)
        ]
        first, _ = start(commands)
    assert (tmp_path / "killed").is_dir()
    assert f"the run goes on from {tmp_path}/run/checkpoint-4" in first
    assert_exact(tmp_path, undisturbed)
    kept = [sorted(path.name for path in (folder / "run").glob("checkpoint-*")) for folder in folders]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2
