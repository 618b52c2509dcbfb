"""FairScale's FSDP: refused without CUDA; its logic on the CPU under the shim of the tests; on CUDA as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.scenarios import assert_same, launch, run, without_engine
from support.toy import trainer

from drivetrain import ConfigurationError

PLAIN = {"model": "rich", "weight_decay": 0.1, "max_grad_norm": 0.5}
UNTIED = {**PLAIN, "model": "untied", "plugins": {"fairscale": {"min_num_params": 100}}}
SAVED = {**PLAIN, "gradient_accumulation_steps": 3, "num_train_epochs": 3, "save_strategy": "epoch"}
EXACT: dict[str, dict[str, Any]] = {
    "two": {**PLAIN, "sharded_ddp": "zero_dp_2"},
    "three": {**PLAIN, "sharded_ddp": "zero_dp_3", "gradient_accumulation_steps": 3},
    "wrapped": {**UNTIED, "sharded_ddp": "zero_dp_3 auto_wrap", "gradient_accumulation_steps": 2},
    "wrapped_two": {**UNTIED, "sharded_ddp": "zero_dp_2 auto_wrap"},
    "offload": {**PLAIN, "sharded_ddp": "zero_dp_3 offload", "gradient_accumulation_steps": 2},
    "frozen": {**PLAIN, "sharded_ddp": "zero_dp_3", "model": "frozen"},
    "unused": {**PLAIN, "sharded_ddp": "zero_dp_3", "model": "unused"},
    "finished": {"model": "rich", "finished": "adamw", "twice": True, "sharded_ddp": "zero_dp_3"},
    "compiled": {
        **UNTIED,
        "model": "deep",
        "sharded_ddp": "zero_dp_3 auto_wrap",
        "torch_compile": True,
        "torch_compile_backend": "aot_eager",
    },
    "checkpointed": {
        **UNTIED,
        "model": "deep",
        "sharded_ddp": "zero_dp_2 auto_wrap",
        "gradient_checkpointing": True,
    },
    "outside": {"model": "rich", "finished": "partial", "max_grad_norm": 0.1, "sharded_ddp": "zero_dp_2"},
    "evaluated": {**PLAIN, "sharded_ddp": "zero_dp_2", "evaluation_strategy": "steps", "eval_steps": 2},
    "best": {
        **UNTIED,
        "sharded_ddp": "zero_dp_3 auto_wrap",
        "evaluation_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "learning_rate": 0.05,
    },
}
WRONG: dict[str, dict[str, Any]] = {
    "adafactor": {**PLAIN, "sharded_ddp": "zero_dp_3", "optim": "adafactor"},
    "muon": {**PLAIN, "sharded_ddp": "zero_dp_2", "optim": "muon"},
    "tied": {**UNTIED, "model": "rich", "sharded_ddp": "zero_dp_3 auto_wrap"},
    "mixed": {**PLAIN, "model": "mixed", "sharded_ddp": "zero_dp_3"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    return run(folder, "single_saved", SAVED, processes=1)


@pytest.fixture(scope="module")
def two(folder: Path, single: dict[str, Any]) -> dict[str, Any]:
    def at(name: str) -> str:
        return str(folder / name / "checkpoint-2")

    scenarios = {
        **EXACT,
        **WRONG,
        "bf16": {**PLAIN, "sharded_ddp": "zero_dp_3", "bf16": True},
        "saved": {**SAVED, "sharded_ddp": "zero_dp_3"},
        "resumed": {**SAVED, "sharded_ddp": "zero_dp_2", "resume": at("saved")},
        "from_single": {**SAVED, "sharded_ddp": "zero_dp_3 offload", "resume": at("single_saved")},
        "simple": {**SAVED, "sharded_ddp": "simple", "resume": at("saved")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_ONLY_FAIRSCALE_SHIM", "1")
        return launch(folder, scenarios)


def assert_fully_sharded(found: dict[str, Any]) -> None:
    assert found["strategy"] == "FullyShardedStrategy"
    assert (
        "fairscale.nn.data_parallel.fully_sharded_data_parallel.FullyShardedDataParallel" in found["wrapped"]
    )
    assert found["ranks_equal"]


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_are_one_under_the_shim(two: dict[str, Any], name: str, tmp_path: Path) -> None:
    found = two[name]
    assert_same(run(tmp_path, name, without_engine(EXACT[name]), processes=1), found)
    assert_fully_sharded(found)
    assert not found["wrapper_left"]
    assert found["hooks_left"] == found["views_left"] == 0
    assert found["evaluated_by"] in ("Rich", "Deep")


def test_bf16_is_autocast_over_fp32_weights_under_the_shim(two: dict[str, Any], tmp_path: Path) -> None:
    assert_same(run(tmp_path, "bf16", {**PLAIN, "bf16": True}, processes=1), two["bf16"], tolerance=2e-2)


def test_parameters_gradients_and_state_are_spread_under_the_shim(two: dict[str, Any]) -> None:
    found = two["three"]
    padded = found["whole_elements"] / 2 + found["whole_tensors"]
    for held in found["all_parameter_elements"]:
        assert found["whole_elements"] / 2 <= held <= padded
    for held in found["all_state_elements"]:
        assert held <= 2 * padded
    for held in found["all_gradient_elements"]:
        assert held <= padded


@pytest.mark.parametrize(
    ("resumed", "whole"), [("resumed", "saved"), ("from_single", "single"), ("simple", "saved")]
)
def test_a_run_that_changed_is_the_run_that_never_did_under_the_shim(
    two: dict[str, Any], single: dict[str, Any], resumed: str, whole: str
) -> None:
    assert_same({**two, "single": single}[whole], two[resumed])
    assert_same(single, two["saved"])


def test_one_process_goes_on_under_the_shim(two: dict[str, Any], folder: Path) -> None:
    settings = {**SAVED, "resume": str(folder / "saved" / "checkpoint-2")}
    assert_same(two["saved"], run(folder, "goes_on", settings, processes=1))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "adafactor",
            "Strategy 'fairscale' spreads flat parts of parameters under zero_dp_2 and zero_dp_3, and the ",
        ),
        (
            "muon",
            "Strategy 'fairscale' spreads flat parts of parameters under zero_dp_2 and zero_dp_3, and the ",
        ),
        (
            "tied",
            "sharded_ddp='auto_wrap' would cut apart the tied parameter 'middle.weight', which FairScale's FSDP",
        ),
        (
            "mixed",
            "FairScale's FSDP keeps weights in float32, and 'last.weight' is torch.float64: load the model in",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence_on_every_rank_under_the_shim(
    two: dict[str, Any], name: str, sentence: str
) -> None:
    assert len(two[name]["errors"]) == 2
    for error in two[name]["errors"]:
        assert error.startswith(f"ConfigurationError: {sentence}")


@pytest.mark.parametrize("words", ["zero_dp_2", "zero_dp_3", "zero_dp_3 offload auto_wrap"])
def test_without_cuda_it_is_refused(tmp_path: Path, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, sharded_ddp=words).train()
    assert str(caught.value) == (
        f"sharded_ddp='{words}' needs a CUDA device, since FairScale's FSDP is written for CUDA, and use_cpu=True keeps "
        "this run on the CPU: use sharded_ddp='simple', or fsdp='full_shard', which work on this CPU."
    )


def test_auto_wrap_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="needs zero_dp_2 or zero_dp_3 beside it, as in 'zero_dp_3 auto_wrap'"
    ):
        trainer(tmp_path, sharded_ddp="auto_wrap").train()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="FairScale's FSDP needs two CUDA devices")
def test_on_cuda(tmp_path: Path) -> None:
    names = ("two", "three", "wrapped", "offload")
    scenarios = {name: {**EXACT[name], "use_cpu": False} for name in names}
    scenarios["fp16"] = {**EXACT["three"], "use_cpu": False, "fp16": True}
    found = launch(tmp_path, scenarios)
    for name in names:
        one = run(tmp_path, name, {**without_engine(EXACT[name]), "use_cpu": False}, processes=1)
        assert_same(one, found[name], tolerance=2e-4)
        assert_fully_sharded(found[name])
    assert found["fp16"]["error"] is None
