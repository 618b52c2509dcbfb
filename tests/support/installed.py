"""Packages installed by pip into a folder of their own, metadata and all, and commands run with it on the path."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.name for path in (ROOT / "contrib").iterdir() if (path / "pyproject.toml").exists())


@dataclass(frozen=True)
class Site:
    """A folder with packages, and what is run with it on the path."""

    folder: Path

    def install(self, *projects: Path) -> None:
        """By pip, built from their sources."""
        quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
        self.run("pip", "install", *quiet, "--target", str(self.folder), *map(str, projects))

    def run(
        self,
        *command: str,
        folder: Path = ROOT,
        timeout: int = 600,
        code: int = 0,
        path: tuple[Path, ...] = (),
    ) -> str:
        """What `python -m COMMAND` prints; the test fails where it ends with another code, or is not at its end in time."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (self.folder, *path))),
            "COLUMNS": "110",
            "NO_COLOR": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(
                    process.pid, signal.SIGTERM
                )  # torchrun ends its workers, which are no part of the group
            printed, _ = process.communicate(timeout=60)
            pytest.fail(f"{' '.join(command)} was not at its end after {timeout} s:\n{printed[-6000:]}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == code, (
            f"{' '.join(command)} ended with {process.returncode}:\n{printed[-9000:]}"
        )
        return printed
