"""The real DeepSpeed in two processes trains as one process does; what it writes resumes anywhere, and the reverse.

Importing DeepSpeed takes seconds, so that each launch holds many runs.
"""

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

pytestmark = pytest.mark.timeout(900)  # of the fixtures, each of which is a launch of many runs
SCRIPT = Path(__file__).with_name("deepspeed_script.py")
STAGES = (0, 1, 2, 3)
EPOCHS = {"save_strategy": "epoch"}


def zero(stage: int, inside: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **(inside or {})}, **beside}}


def launch(folder: Path, processes: int, scenarios: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs the scenarios in one launch; of each, what every rank saved."""
    folder.mkdir(exist_ok=True)
    file = folder / f"scenarios-{processes}-{scenarios[0]['name']}.json"
    file.write_text(json.dumps(scenarios))
    if processes > 1:
        torchrun(SCRIPT, str(folder), str(file), processes=processes, timeout=280)
    else:
        alone = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), str(file)],
            capture_output=True, text=True, timeout=280, env={**os.environ, **alone}, check=False,
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
    torch.testing.assert_close(other["predictions"], one["predictions"], rtol=1e-4, atol=max(1e-5, tolerance))


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """One process, without DeepSpeed: 101 rows that fit no batch, accumulation that leaves a rest, clipping, decay."""
    scenarios = [
        {"name": "base", "settings": EPOCHS},
        {"name": "short", "rows": 10, "settings": {"gradient_accumulation_steps": 4}},
        {"name": "init", "model_init": True},
        {"name": "twice", "times": 2},
        {"name": "failing", "failing": [0, 1]},
    ]
    return {name: ranks[0] for name, ranks in launch(folder, 1, scenarios).items()}


@pytest.fixture(scope="module")
def quick(folder: Path, alone: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Two processes, one launch."""
    checkpoint = str(folder / "base" / "checkpoint-4")
    scenarios: list[dict[str, Any]] = []
    for stage in STAGES:
        scenarios += [
            {"name": f"base-{stage}", "settings": {**zero(stage), **EPOCHS}},
            {"name": f"into-{stage}", "world": 1, "resume": checkpoint, "settings": zero(stage)},
        ]
    scenarios += [
        {"name": "short-2", "rows": 10, "settings": {"gradient_accumulation_steps": 4, **zero(2)}},
        {"name": "init-3", "model_init": True, "settings": zero(3)},
        {"name": "twice-3", "times": 2, "settings": zero(3)},
        {"name": "failing-3", "failing": [0, 1], "settings": zero(3)},
        {"name": "default", "settings": {"strategy": "deepspeed"}},
        {"name": "eval-0", "evaluate_only": True, "settings": zero(0)},
        {"name": "eval-3", "evaluate_only": True, "settings": zero(3)},
        {"name": "adafactor", "fails": True, "settings": {"optim": "adafactor", **zero(2)}},
        {"name": "unknown", "fails": True, "settings": zero(2, {"contiguous_gradient": True})},
        {"name": "fp16", "fails": True, "settings": {"fp16": True, **zero(2)}},
    ]
    return launch(folder, 2, scenarios)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one(stage: int, alone: dict[str, Any], quick: dict[str, Any]) -> None:
    assert_same(alone["base"], quick[f"base-{stage}"])
    assert_is_zero(stage, quick[f"base-{stage}"])


@pytest.mark.parametrize("stage", STAGES)
def test_what_one_process_wrote_goes_on(stage: int, alone: dict[str, Any], quick: dict[str, Any]) -> None:
    """The checkpoint stands between two epochs, and carries the gradient of a micro-batch that was left over."""
    assert_same(alone["base"], quick[f"into-{stage}"])
    assert_is_zero(stage, quick[f"into-{stage}"])


@pytest.fixture(scope="module")
def back(folder: Path, quick: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """One process: without DeepSpeed from what two wrote with it, and with DeepSpeed by plain `python`."""
    scenarios: list[dict[str, Any]] = [
        {"name": f"from-{stage}", "world": 2, "resume": str(folder / f"base-{stage}" / "checkpoint-4")}
        for stage in STAGES
    ]
    checkpoint = str(folder / "base-1" / "checkpoint-4")
    scenarios += [
        {"name": f"plain-{stage}", "world": 2, "resume": checkpoint, "settings": zero(stage)}
        for stage in (1, 3)
    ]
    return launch(folder, 1, scenarios)


@pytest.mark.parametrize("stage", STAGES)
def test_what_zero_wrote_goes_on_in_one_process(
    stage: int, folder: Path, alone: dict[str, Any], back: dict[str, Any]
) -> None:
    assert (folder / f"base-{stage}" / "checkpoint-4" / "gradients.safetensors").exists()
    assert_same(alone["base"], back[f"from-{stage}"])
    assert back[f"from-{stage}"][0]["strategy"] == "SingleStrategy"


@pytest.mark.parametrize("stage", [1, 3])
def test_one_process_without_a_launcher(stage: int, alone: dict[str, Any], back: dict[str, Any]) -> None:
    assert_same(alone["base"], back[f"plain-{stage}"])
    assert_is_zero(stage, back[f"plain-{stage}"], processes=1)


def test_an_epoch_shorter_than_an_update(alone: dict[str, Any], quick: dict[str, Any]) -> None:
    assert_same(alone["short"], quick["short-2"])


def test_a_model_that_is_built_in_pieces(alone: dict[str, Any], quick: dict[str, Any]) -> None:
    assert_same(alone["init"], quick["init-3"])
    assert_is_zero(3, quick["init-3"])


def test_a_second_train_goes_on(alone: dict[str, Any], quick: dict[str, Any]) -> None:
    assert_same(alone["twice"], quick["twice-3"])


def test_without_a_configuration_it_is_stage_2(alone: dict[str, Any], quick: dict[str, Any]) -> None:
    assert_same(alone["base"], quick["default"])
    assert_is_zero(2, quick["default"])


def test_evaluation_by_itself(quick: dict[str, Any]) -> None:
    one, three = quick["eval-0"][0]["metrics"], quick["eval-3"][0]["metrics"]
    assert three["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-6)
    assert quick["eval-3"][1]["leftovers"] == []


def test_a_failure_everywhere_leaves_a_whole_model(alone: dict[str, Any], quick: dict[str, Any]) -> None:
    assert [rank["error"] for rank in quick["failing-3"]] == [f"rank {n} fails at step 3" for n in (0, 1)]
    assert_same(alone["failing"], quick["failing-3"])


def test_what_cannot_be_is_one_sentence_on_every_rank(quick: dict[str, Any]) -> None:
    for name, said in {
        "adafactor": "ConfigurationError: The optimizer Adafactor does not work element by element, but strategy "
        "'deepspeed' with ZeRO stage 2 gives it flat parts of parameters: use optim='adamw_torch', or strategy='ddp'.",
        "unknown": "ConfigurationError: DeepSpeed refuses this configuration: contiguous_gradient: Extra inputs are not "
        "permitted.",
        "fp16": "ConfigurationError: fp16=True needs a CUDA device, and use_cpu=True keeps this run on the CPU. Use "
        "bf16=True, which works on this CPU.",
    }.items():
        assert [rank["error"] for rank in quick[name]] == [said, said]
