"""FairScale's OSS in two real processes is the run of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.scenarios import assert_same, launch, run, without_engine
from support.toy import trainer

from drivetrain import ConfigurationError

SIMPLE = {"sharded_ddp": "simple"}
PLAIN = {"model": "rich", "weight_decay": 0.1, "max_grad_norm": 0.5}
# 7 micro-batches an epoch, of which one is left over: its gradient is in the checkpoint of an epoch's end.
SAVED = {**PLAIN, "gradient_accumulation_steps": 3, "num_train_epochs": 3, "save_strategy": "epoch"}


def options(**chosen: Any) -> dict[str, Any]:
    return {"plugins": {"fairscale": chosen}}


EXACT: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "accumulated": {**PLAIN, "gradient_accumulation_steps": 3},
    "one_by_one": {**PLAIN, "gradient_accumulation_steps": 2, **options(reduce_buffer_size=0)},
    "frozen": {**PLAIN, "model": "frozen"},
    "unused": {**PLAIN, "model": "unused"},
    "alternating": {**PLAIN, "model": "alternating", "gradient_accumulation_steps": 2},
    "branch": {
        **PLAIN,
        "model": "branch",
        "gradient_accumulation_steps": 2,
        **options(find_unused_parameters=True),
    },
    "branch_one_by_one": {
        **PLAIN,
        "model": "branch",
        **options(find_unused_parameters=True, reduce_buffer_size=0),
    },
    "evaluated": {**PLAIN, "evaluation_strategy": "steps", "eval_steps": 2},
    "compiled": {
        "model": "deep",
        "gradient_checkpointing": True,
        "torch_compile": True,
        "torch_compile_backend": "aot_eager",
    },
    "adafactor": {**PLAIN, "optim": "adafactor"},
    "muon": {**PLAIN, "optim": "muon"},
    "finished": {"model": "rich", "finished": "adamw", "twice": True},
    "partial": {"model": "rich", "finished": "partial", "max_grad_norm": 0.1},
    "first_group_empty": {"model": "rich", "optim": "sgd", "param_groups": [{"match": "*", "lr": 0.05}]},
}
WRONG: dict[str, dict[str, Any]] = {
    "mixed": {**PLAIN, "model": "mixed"},
    "alternating_one_by_one": {
        **PLAIN,
        "model": "alternating",
        "gradient_accumulation_steps": 2,
        **options(reduce_buffer_size=0),
    },
    "cannot_be_rebuilt": {"model": "rich", "finished": "secretive"},
    "schedule_free": {**PLAIN, "optim": "schedule_free_adamw"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    """Runs of one process that save, before the launch that resumes from what they wrote."""
    return {
        "single_saved": run(folder, "single_saved", SAVED, processes=1),
        "single_adafactor": run(folder, "single_adafactor", {**SAVED, "optim": "adafactor"}, processes=1),
    }


@pytest.fixture(scope="module")
def two(folder: Path, single: dict[str, Any]) -> dict[str, Any]:
    def at(name: str) -> str:
        return str(folder / name / "checkpoint-2")

    scenarios = {name: {**settings, **SIMPLE} for name, settings in {**EXACT, **WRONG}.items()}
    scenarios |= {
        "bf16": {**PLAIN, "strategy": "fairscale", "bf16": True},
        "saved": {**SAVED, **SIMPLE},
        "saved_one_by_one": {**SAVED, **SIMPLE, **options(reduce_buffer_size=0)},
        "resumed": {**SAVED, **SIMPLE, "resume": at("saved")},
        "resumed_one_by_one": {
            **SAVED,
            **SIMPLE,
            **options(reduce_buffer_size=0),
            "resume": at("saved_one_by_one"),
        },
        "resumed_from_single": {**SAVED, **SIMPLE, "resume": at("single_saved")},
        "adafactor_from_single": {**SAVED, **SIMPLE, "optim": "adafactor", "resume": at("single_adafactor")},
        "ddp_resumed": {**SAVED, "resume": at("saved")},
        "ddp_saved": SAVED,
        "resumed_from_ddp": {**SAVED, **SIMPLE, "resume": at("ddp_saved")},
        "other_optimizer": {**SAVED, **SIMPLE, "optim": "adafactor", "resume": at("saved")},
    }
    return launch(folder, scenarios)


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_are_one(two: dict[str, Any], name: str, tmp_path: Path) -> None:
    found = two[name]
    assert_same(run(tmp_path, name, without_engine(EXACT[name]), processes=1), found)
    assert found["strategy"] == "ShardedStrategy"
    assert "fairscale.nn.data_parallel.sharded_ddp.ShardedDataParallel" in found["wrapped"]
    assert found["optimizer"] == "fairscale.optim.oss.OSS"
    assert found["ranks_equal"]
    assert not found["wrapper_left"]
    assert found["hooks_left"] == found["views_left"] == 0
    assert found["evaluated_by"] in ("Rich", "Deep")


def test_state_and_gradients_are_spread(two: dict[str, Any]) -> None:
    whole = two["plain"]["trained_elements"]
    assert sum(two["plain"]["all_state_elements"]) == 2 * whole  # AdamW's two averages, each on one rank
    assert max(two["plain"]["all_state_elements"]) < 1.4 * whole
    # Reduced one by one, a gradient is given up by all but its parameter's owner.
    assert sum(two["one_by_one"]["all_gradient_elements"]) == whole
    assert two["one_by_one"]["all_gradient_elements"] == [
        n / 2 for n in two["one_by_one"]["all_state_elements"]
    ]


def test_bf16_is_autocast_over_fp32_weights(two: dict[str, Any], tmp_path: Path) -> None:
    assert_same(run(tmp_path, "bf16", {**PLAIN, "bf16": True}, processes=1), two["bf16"], tolerance=2e-2)


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [
        ("resumed", "saved"),
        ("resumed_one_by_one", "saved_one_by_one"),
        ("resumed_from_single", "single_saved"),
        ("adafactor_from_single", "single_adafactor"),
        ("resumed_from_ddp", "ddp_saved"),
        ("ddp_resumed", "saved"),
    ],
)
def test_a_run_that_changed_is_the_run_that_never_did(
    two: dict[str, Any], single: dict[str, Any], resumed: str, whole: str
) -> None:
    every = {**single, **two}
    assert_same(every[whole], every[resumed])
    assert_same(every["single_saved"], every["saved"])


def test_one_process_goes_on(two: dict[str, Any], folder: Path) -> None:
    settings = {**SAVED, "resume": str(folder / "saved" / "checkpoint-2")}
    assert_same(two["saved"], run(folder, "goes_on", settings, processes=1))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "mixed",
            "ConfigurationError: Strategy 'fairscale' with sharded_ddp='simple' trains parameters of one dtype, and this "
            "model has torch.float32 and torch.float64: cast it to one of them, or use strategy='ddp'.",
        ),
        (
            "alternating_one_by_one",
            "ConfigurationError: The last micro-batch of an update did not use the parameter 'spare.",
        ),
        (
            "cannot_be_rebuilt",
            "ConfigurationError: Strategy 'fairscale' must build the optimizer anew over its shards, and a finished "
            "Secretive does not tell its 'secret': hand in the class by optim",
        ),
        (
            "schedule_free",
            "ConfigurationError: The optimizer schedulefree.AdamWScheduleFree keeps other weights for evaluation, which "
            "strategy 'fairscale' with sharded_ddp='simple' cannot swap: use strategy='ddp', or strategy='fsdp'.",
        ),
        ("other_optimizer", "CheckpointError: The checkpoint was written by another optimizer than "),
    ],
)
def test_what_cannot_be_is_one_sentence_on_every_rank(two: dict[str, Any], name: str, sentence: str) -> None:
    assert len(two[name]["errors"]) == 2
    for error in two[name]["errors"]:
        assert error.startswith(sentence)


@pytest.mark.parametrize("settings", [SIMPLE, {"strategy": "fairscale"}])
def test_one_process_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"Strategy 'fairscale' needs several processes: start the script by"
    ):
        trainer(tmp_path, **settings).train()


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"reduce_buffer_size": -1}, "option 'reduce_buffer_size' must be at least 0, and is -1."),
        ({"reduce_fp16": True}, "option 'reduce_fp16' needs reduce_buffer_size=0"),
        ({"min_num_params": 0}, "option 'min_num_params' must be at least 1, and is 0."),
        ({"reduce_bufer_size": 0}, "has no option 'reduce_bufer_size'. Did you mean 'reduce_buffer_size'?"),
    ],
)
def test_wrong_options(tmp_path: Path, chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, **SIMPLE, **options(**chosen)).train()
    assert sentence in str(caught.value)


@pytest.mark.soak
def test_four_processes_are_one(
    folder: Path, two: dict[str, Any], single: dict[str, Any], tmp_path: Path
) -> None:
    """5 rows are left at the end for 4 ranks, and a checkpoint of 2 processes goes on with 4."""
    resume = {**SAVED, **SIMPLE, "resume": str(folder / "saved" / "checkpoint-2")}
    four = launch(
        tmp_path / "four", {"accumulated": {**EXACT["accumulated"], **SIMPLE}, "resumed": resume}, processes=4
    )
    assert_same(two["accumulated"], four["accumulated"])
    assert_same(single["single_saved"], four["resumed"])
    assert min(four["accumulated"]["all_state_elements"]) > 0
    assert sum(four["accumulated"]["all_state_elements"]) == 2 * four["accumulated"]["trained_elements"]
