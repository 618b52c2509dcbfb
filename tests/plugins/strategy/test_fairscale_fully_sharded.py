"""FairScale's FSDP: refused without CUDA; its logic on the CPU under the shim of the tests; on CUDA as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.scenarios import assert_same, launch, run

PLAIN = {"model": "rich", "weight_decay": 0.1, "max_grad_norm": 0.5}
SMALL = {"plugins": {"fairscale": {"min_num_params": 100}}}
SCENARIOS: dict[str, dict[str, Any]] = {
    "two": {**PLAIN, "sharded_ddp": "zero_dp_2"},
    "three": {**PLAIN, "sharded_ddp": "zero_dp_3", "gradient_accumulation_steps": 3},
    "wrapped": {
        **PLAIN,
        "sharded_ddp": "zero_dp_3 auto_wrap",
        "gradient_accumulation_steps": 2,
        "model": "untied",
        **SMALL,
    },
    "wrapped_two": {**PLAIN, "sharded_ddp": "zero_dp_2 auto_wrap", "model": "untied", **SMALL},
    "offload": {**PLAIN, "sharded_ddp": "zero_dp_3 offload", "gradient_accumulation_steps": 2},
    "frozen": {**PLAIN, "sharded_ddp": "zero_dp_3", "model": "frozen"},
    "unused": {**PLAIN, "sharded_ddp": "zero_dp_3", "model": "unused"},
    "finished": {"model": "rich", "finished": "adamw", "twice": True, "sharded_ddp": "zero_dp_3"},
    "evaluated": {**PLAIN, "sharded_ddp": "zero_dp_2", "evaluation_strategy": "steps", "eval_steps": 2},
}


def without_engine(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in settings.items() if key not in ("plugins", "strategy", "sharded_ddp")
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_ONLY_FAIRSCALE_SHIM", "1")
        return launch(tmp_path_factory.mktemp("two"), SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_are_one_under_the_shim(two: dict[str, Any], name: str, tmp_path: Path) -> None:
    found = two[name]
    assert_same(run(tmp_path, name, without_engine(SCENARIOS[name]), processes=1), found)
    assert found["strategy"] == "FullyShardedStrategy"
    assert (
        "fairscale.nn.data_parallel.fully_sharded_data_parallel.FullyShardedDataParallel" in found["wrapped"]
    )
    assert found["ranks_equal"]
