"""Many runs under DeepSpeed in one launch, and what is asserted of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.launch import torchrun

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "plugins" / "strategy" / "deepspeed_script.py"


def zero(stage: int, inside: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **(inside or {})}, **beside}}


def launch(
    folder: Path, processes: int, scenarios: list[dict[str, Any]], timeout: int = 280
) -> dict[str, list[dict[str, Any]]]:
    """Runs the scenarios in one launch of at most so many seconds; of each, what every rank saved."""
    folder.mkdir(exist_ok=True)
    file = folder / f"scenarios-{processes}-{scenarios[0]['name']}.json"
    file.write_text(json.dumps(scenarios))
    if processes > 1:
        torchrun(SCRIPT, str(folder), str(file), processes=processes, timeout=timeout)
    else:
        alone = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), str(file)],
            capture_output=True, text=True, timeout=timeout, env={**os.environ, **alone}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
    return {
        s["name"]: [
            torch.load(folder / f"{s['name']}.{rank}.pt", weights_only=True) for rank in range(processes)
        ]
        for s in scenarios
    }


def assert_same(one: dict[str, Any], ranks: list[dict[str, Any]], tolerance: float = 1e-6) -> None:
    """Weights on every rank, losses, learning rates and predictions are those of one process."""
    for rank in ranks:
        assert rank["tied"]
        assert rank["leftovers"] == []
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(rank["weights"][name], tensor, rtol=tolerance, atol=tolerance)
    other = ranks[0]
    assert len(other["history"]) == len(one["history"])
    for mine, theirs in zip(other["history"], one["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=max(100 * tolerance, 1e-4))
    torch.testing.assert_close(other["predictions"], one["predictions"], rtol=1e-4, atol=max(3e-5, tolerance))


def assert_is_zero(stage: int, ranks: list[dict[str, Any]], inner: str = "AdamW", processes: int = 2) -> None:
    """The engine is DeepSpeed's, and what the stage spreads is spread: elements that a rank holds."""
    for rank in ranks:
        facts = rank["facts"]
        assert facts["engine"] == "deepspeed.runtime.engine.DeepSpeedEngine"
        assert facts["inner"] == inner
        assert facts["training"]
        whole = facts["whole"]
        part = -(-whole // processes)
        if stage == 0:
            assert facts["optimizer"] == inner
        else:
            kind = "DeepSpeedZeroOptimizer_Stage3" if stage == 3 else "DeepSpeedZeroOptimizer"
            assert facts["optimizer"] == kind
            # padded: per parameter under stage 3, per group under stages 1 and 2
            assert part <= facts["updated"] <= part + 8
        assert facts["held"] == (facts["updated"] if stage == 3 else whole)
