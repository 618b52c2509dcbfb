"""Saves onto real file systems that are too small or read-only: what was there stays, and the error says what helps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@cache
def mounts() -> list[str]:
    """The command in front of one that mounts file systems which nobody else sees; nothing where none may be mounted."""
    if shutil.which("unshare") is None:
        return []
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        tried = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
        if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return command
    return []


def run(scenario: str, folder: Path, around: list[str]) -> None:
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [*around, sys.executable, str(HERE / "disks.py"), scenario, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("done\n")


@pytest.mark.parametrize(
    "scenario", ["full", "goes_on", "read_only", pytest.param("full_for_two", marks=pytest.mark.soak)]
)
def test_a_real_file_system(tmp_path: Path, scenario: str) -> None:
    if not mounts():
        pytest.skip("no file system can be mounted here (unshare --mount, or with --map-root-user)")
    run(scenario, tmp_path, mounts())


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    run("limited", tmp_path, [])
