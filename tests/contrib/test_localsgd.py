"""A stranger's strategy: built as a wheel, installed by pip in an environment of its own, and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "plugins" / "strategy" / "train_script.py"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stranger's package installed in it by pip, metadata and all."""
    place = tmp_path_factory.mktemp("stranger")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
            "--target", str(place), str(ROOT / "contrib" / "drivetrain-localsgd"),
        ],
        check=True,
        timeout=200,
    )  # fmt: skip
    return place


def run(stranger: Path, folder: Path, processes: int = 2, **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(stranger)]),
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), json.dumps(settings)],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    result: dict[str, Any] = torch.load(folder / f"result-{processes}.pt", weights_only=True)
    return result


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float((one["weights"][n] - other["weights"][n]).abs().max()) for n in one["weights"])


def test_it_imports_the_public_package_alone() -> None:
    for file in (ROOT / "contrib" / "drivetrain-localsgd" / "drivetrain_localsgd").glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import drivetrain", "from drivetrain")):
                assert line.split()[1] in ("drivetrain", "drivetrain_localsgd"), line


def test_averaging_after_every_update_is_ddp(stranger: Path, tmp_path: Path) -> None:
    plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    ddp = run(stranger, tmp_path / "ddp", **plain)
    local = run(
        stranger, tmp_path / "local", strategy="localsgd", plugins={"localsgd": {"every": 1}}, **plain
    )
    assert (ddp["strategy"], local["strategy"]) == ("DDPStrategy", "LocalSGD")
    assert distance(ddp, local) < 1e-6


def test_it_differs_between_averages(stranger: Path, tmp_path: Path) -> None:
    plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    ddp = run(stranger, tmp_path / "ddp", **plain)
    local = run(
        stranger, tmp_path / "local", strategy="localsgd", plugins={"localsgd": {"every": 3}}, **plain
    )
    assert distance(ddp, local) > 1e-4


def test_a_wrong_option_is_named(stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"has no option 'evry'. Did you mean 'every'"):
        run(stranger, tmp_path / "wrong", strategy="localsgd", plugins={"localsgd": {"evry": 3}})
