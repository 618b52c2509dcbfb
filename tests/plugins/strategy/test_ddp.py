"""DDP in two real processes is the run of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launch import torchrun
from support.toy import trainer

from drivetrain import ConfigurationError

SCRIPT = Path(__file__).with_name("train_script.py")


def run(folder: Path, processes: int, **settings: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    if processes == 1:
        import os

        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), json.dumps(settings)],
            check=True,
            timeout=200,
            env=environment,
        )
    else:
        torchrun(SCRIPT, str(folder), json.dumps(settings), processes=processes)
    result: dict[str, Any] = torch.load(folder / f"result-{processes}.pt", weights_only=True)
    return result


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 2e-5) -> None:
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=tolerance, atol=tolerance)
    assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)
    assert len(one["history"]) == len(other["history"])
    for a, b in zip(one["history"], other["history"], strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    torch.testing.assert_close(other["predictions"], one["predictions"], rtol=1e-4, atol=1e-5)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """101 rows fit no batch, accumulation leaves a rest, gradients are clipped and weights decay."""
    settings = {"gradient_accumulation_steps": 3, "max_grad_norm": 0.5, "weight_decay": 0.1}
    one, two = run(tmp_path, 1, **settings), run(tmp_path, 2, **settings)
    assert one["strategy"] == "SingleStrategy"
    assert two["strategy"] == "DDPStrategy"
    assert_same(one, two)
    assert len(two["predictions"]) == 101  # every row once


def test_a_checkpoint_of_two_processes_resumes_in_two_and_in_one(tmp_path: Path) -> None:
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    whole = run(tmp_path / "whole", 2, **settings)
    checkpoint = str(tmp_path / "whole" / "run" / "checkpoint-4")
    assert_same(whole, run(tmp_path / "two", 2, resume=checkpoint, **settings))
    assert_same(whole, run(tmp_path / "one", 1, resume=checkpoint, **settings))


def test_ddp_in_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="Strategy 'ddp' needs several processes: start the script by torchrun"
    ):
        trainer(tmp_path, strategy="ddp").train()
