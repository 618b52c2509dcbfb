"""The real DeepSpeed in two processes trains as one process does; what it writes resumes anywhere, and the reverse.

Importing DeepSpeed takes seconds, so that each launch holds many runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.zero import assert_is_zero, assert_same, launch, zero

pytestmark = pytest.mark.timeout(900)  # of the fixtures, each of which is a launch of many runs
STAGES = (0, 1, 2, 3)
EPOCHS = {"save_strategy": "epoch"}


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
