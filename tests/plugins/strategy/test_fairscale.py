"""FairScale's OSS in two real processes is the run of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.scenarios import assert_same, launch, run
from support.toy import trainer

from drivetrain import ConfigurationError

SIMPLE = {"sharded_ddp": "simple"}
PLAIN = {"model": "rich", "weight_decay": 0.1, "max_grad_norm": 0.5}
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "accumulated": {**PLAIN, "gradient_accumulation_steps": 3},
    "one_by_one": {
        **PLAIN,
        "gradient_accumulation_steps": 2,
        "plugins": {"fairscale": {"reduce_buffer_size": 0}},
    },
    "frozen": {**PLAIN, "model": "frozen"},
    "unused": {**PLAIN, "model": "unused"},
    "branch": {
        **PLAIN,
        "model": "branch",
        "gradient_accumulation_steps": 2,
        "plugins": {"fairscale": {"find_unused_parameters": True}},
    },
    "branch_one_by_one": {
        **PLAIN,
        "model": "branch",
        "plugins": {"fairscale": {"find_unused_parameters": True, "reduce_buffer_size": 0}},
    },
    "evaluated": {**PLAIN, "evaluation_strategy": "steps", "eval_steps": 2},
    "adafactor": {**PLAIN, "optim": "adafactor"},
    "muon": {**PLAIN, "optim": "muon"},
    "finished": {"model": "rich", "finished": "adamw", "twice": True},
    "partial": {"model": "rich", "finished": "partial", "max_grad_norm": 0.1},
    "only_biases": {"model": "rich", "optim": "sgd", "param_groups": [{"match": "*", "lr": 0.05}]},
}


def without_engine(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in settings.items() if key not in ("plugins", "strategy", "sharded_ddp")
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    return launch(folder, {name: {**settings, **SIMPLE} for name, settings in SCENARIOS.items()})


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_are_one(two: dict[str, Any], name: str, tmp_path: Path) -> None:
    one = run(tmp_path, name, without_engine(SCENARIOS[name]), processes=1)
    found = two[name]
    assert_same(one, found)
    assert found["strategy"] == "ShardedStrategy"
    assert "fairscale.nn.data_parallel.sharded_ddp.ShardedDataParallel" in found["wrapped"]
    assert found["optimizer"] == "fairscale.optim.oss.OSS"
    assert found["ranks_equal"]
