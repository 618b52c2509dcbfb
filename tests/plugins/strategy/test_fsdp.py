"""FSDP in two real processes, both generations: equal to one process, really sharded, and gone afterwards."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins.strategy.fsdp_model import assert_same, build, outcome
from support.launch import torchrun

from drivetrain.checkpoint import load_checkpoint
from drivetrain.checkpoint.tensors import read_header

WORKER = Path(__file__).with_name("fsdp_worker.py")
EVERY_EPOCH = {"save_strategy": "epoch"}
V1 = {"fsdp_version": 1}
SPREAD = {"fsdp_config": {"state_dict_type": "sharded_state_dict"}}
FLAT = {"hard": {"frozen": False}, "weight_decay": 0.0}


def fsdp(mode: str = "full_shard auto_wrap", **settings: Any) -> dict[str, Any]:
    return {"fsdp": mode, **settings}


def launch(folder: Path, scenarios: dict[str, Any], processes: int = 2) -> dict[str, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    torchrun(WORKER, str(folder), processes=processes)
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in scenarios}


def alone(folder: Path, resume: str | None = None, twice: bool = False, **settings: Any) -> dict[str, Any]:
    """The same run in this process alone."""
    made, seen = build(folder, 1, **settings)
    result = outcome(made, seen, made.train(resume_from_checkpoint=resume).training_loss)
    return outcome(made, seen, made.train().training_loss) if twice else result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return alone(folder / "one", **EVERY_EPOCH)


@pytest.fixture(scope="module")
def first_checkpoint(folder: Path, one: dict[str, Any]) -> str:
    """One process's, at the end of the first epoch: a micro-batch's gradient waits for its update."""
    found = sorted((folder / "one").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert (found[0] / "gradients.safetensors").exists()
    return str(found[0])


@pytest.fixture(scope="module")
def two(folder: Path, first_checkpoint: str) -> dict[str, dict[str, Any]]:
    scenarios = {
        "v2": fsdp(**EVERY_EPOCH),
        "v2_grad_op": fsdp("shard_grad_op auto_wrap"),
        "v2_no_shard": fsdp("no_shard"),
        "v2_hybrid": fsdp("hybrid_shard auto_wrap"),
        "v2_resumed": fsdp(resume=first_checkpoint, **EVERY_EPOCH),
        "v2_finished": fsdp(finished=True),
        "v2_twice": fsdp(twice=True),
        "v2_fails": fsdp(fail_at=2),
        "v2_bf16": fsdp(bf16=True),
        "v2_memory": fsdp(memory=True, auto_find_batch_size=True),
        "v2_evaluates": fsdp(only_evaluate=True),
        "v2_no_clip": fsdp(max_grad_norm=0.0),
        "v2_spread": fsdp(**SPREAD, **EVERY_EPOCH),
        "v1": fsdp(**V1, **EVERY_EPOCH),
        "v1_spread": fsdp("no_shard", **V1, **SPREAD, **EVERY_EPOCH),
        "v1_grad_op": fsdp("shard_grad_op auto_wrap", **V1),
        "v1_no_shard": fsdp("no_shard", **V1, **EVERY_EPOCH),
        "v1_hybrid": fsdp("hybrid_shard auto_wrap", **V1, **EVERY_EPOCH),
        "v1_resumed": fsdp(resume=first_checkpoint, **V1, **EVERY_EPOCH),
        "v1_finished": fsdp(finished=True, **V1),
        "v1_twice": fsdp(twice=True, **V1),
        "v1_fails": fsdp(fail_at=2, **V1),
        "v1_bf16": fsdp(bf16=True, **V1),
        "v1_memory": fsdp(memory=True, auto_find_batch_size=True, **V1),
        "v1_evaluates": fsdp(only_evaluate=True, **V1),
        "v1_flat": fsdp(fsdp_config={"use_orig_params": False}, **V1, **FLAT, **EVERY_EPOCH),
    }
    return launch(folder / "two", scenarios)


VERSIONS = pytest.mark.parametrize("version", ["v2", "v1"])


@pytest.mark.parametrize(
    "name",
    ["v2", "v2_grad_op", "v2_no_shard", "v2_hybrid", "v1", "v1_grad_op", "v1_no_shard", "v1_hybrid"],
)
def test_two_processes_are_one(name: str, one: dict[str, Any], two: dict[str, dict[str, Any]]) -> None:
    """53 rows fit no batch; accumulation leaves a rest over the epoch; clipping, decay of one group of two."""
    assert_same(one, two[name])


@pytest.mark.parametrize(
    ("name", "engine", "share"),
    [
        ("v2", "torch.distributed.fsdp.FSDPModule", 0.6),
        ("v2_grad_op", "torch.distributed.fsdp.FSDPModule", 0.6),
        ("v2_no_shard", "torch.distributed.fsdp.FSDPModule", 1.0),
        ("v1", "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel", 0.6),
        ("v1_grad_op", "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel", 0.6),
        ("v1_no_shard", "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel", 1.0),
        ("v1_flat", "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel", 0.6),
    ],
)
def test_the_engine_is_torchs_and_shards(
    name: str, engine: str, share: float, two: dict[str, dict[str, Any]]
) -> None:
    for rank in two[name]["ranks"]:
        seen = rank["seen"]
        assert seen["strategy"] == "FSDPStrategy"
        assert engine in seen["wrapped_modules"]
        assert seen["kept"] <= share * seen["whole"] + 10
        assert seen["state_kept"] <= 2 * share * seen["whole"] + 20
        if share < 1:
            assert seen["kept"] >= 0.4 * seen["whole"]
    assert sum(rank["seen"]["kept"] for rank in two[name]["ranks"]) >= two[name]["seen"]["whole"]


@pytest.mark.parametrize("name", ["v2", "v2_hybrid", "v2_twice", "v2_evaluates", "v1", "v1_flat", "v1_twice"])
def test_the_bare_model_comes_back(name: str, two: dict[str, dict[str, Any]]) -> None:
    """Class, hooks, attributes, parameter objects; a plain forward and backward work on it."""
    for rank in two[name]["ranks"]:
        assert rank["plain"]
        assert rank["same_objects"]
    assert two[name]["bare_gradients"] == two[name]["trained"]


@VERSIONS
def test_a_second_training_goes_on(version: str, folder: Path, two: dict[str, dict[str, Any]]) -> None:
    """The optimizer of the first one is the second one's, with its state."""
    assert_same(alone(folder / "twice", twice=True), two[f"{version}_twice"])


@VERSIONS
def test_a_finished_optimizer_is_used(version: str, folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert_same(alone(folder / "finished", finished=True), two[f"{version}_finished"])


@VERSIONS
def test_bf16_is_autocast(version: str, folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert_same(alone(folder / "bf16", bf16=True), two[f"{version}_bf16"], tolerance=2e-2)
    assert two[f"{version}_bf16"]["weights"]["up.weight"].dtype == torch.float32


@VERSIONS
def test_evaluation_alone(version: str, folder: Path, two: dict[str, dict[str, Any]]) -> None:
    made, _ = build(folder / "evaluates", 1)
    assert two[f"{version}_evaluates"]["evaluated"] == pytest.approx(made.evaluate()["eval_loss"], rel=1e-6)


@VERSIONS
def test_one_processs_checkpoint_resumes(
    version: str, one: dict[str, Any], two: dict[str, dict[str, Any]]
) -> None:
    """With the gradient of an unfinished accumulation."""
    resumed = two[f"{version}_resumed"]
    assert_same({**one, "norms": one["norms"][-len(resumed["norms"]) :]}, resumed)


@pytest.mark.parametrize("version", ["v2", "v1", "v1_no_shard"])
def test_its_checkpoint_resumes_in_one_process(
    version: str, folder: Path, two: dict[str, dict[str, Any]]
) -> None:
    checkpoints = sorted((folder / "two" / version).glob("checkpoint-*"))
    first = min(checkpoints, key=lambda path: int(path.name.split("-")[1]))
    assert (first / "gradients.safetensors").exists()
    resumed = alone(folder / f"{version}_in_one", resume=str(first), **EVERY_EPOCH)
    assert_same({**two[version], "norms": two[version]["norms"][-len(resumed["norms"]) :]}, resumed)


@pytest.mark.parametrize("name", ["v2_spread", "v1_spread"])
def test_every_rank_writes_a_part(
    name: str, folder: Path, one: dict[str, Any], two: dict[str, dict[str, Any]]
) -> None:
    """Whole tensors by name in files of each rank; one process reads them as it reads any checkpoint."""
    assert_same(one, two[name])
    first = min((folder / "two" / name).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    weights = [read_header(str(first / f"model-{number:05d}-of-00002.safetensors")) for number in (1, 2)]
    states = [read_header(str(first / f"optimizer{part}.safetensors")) for part in ("", "-1")]
    gradients = [read_header(str(first / f"gradients{part}.safetensors")) for part in ("", "-1")]
    for parts in (weights, states, gradients):
        sizes = [sum(math.prod(shape) for _, shape in part.values()) for part in parts]
        assert not parts[0].keys() & parts[1].keys()
        assert 0.3 < sizes[0] / sum(sizes) < 0.7, sizes
    whole = load_checkpoint(str(first)).train_state
    expected = load_checkpoint(str(folder / "one" / first.name)).train_state
    assert whole is not None
    assert expected is not None
    assert whole.weights.keys() == expected.weights.keys()
    assert whole.optimizer.keys() == expected.optimizer.keys()
    assert whole.gradients.keys() == expected.gradients.keys()
    resumed = alone(folder / f"{name}_in_one", resume=str(first), **EVERY_EPOCH)
    assert_same({**one, "norms": one["norms"][-len(resumed["norms"]) :]}, resumed)


def test_flat_parameters(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    settings = {**FLAT, **EVERY_EPOCH}
    one = alone(folder / "flat", **settings)
    assert_same(one, two["v1_flat"])
    assert two["v1_flat"]["seen"]["use_orig_params"] is False
    first = min((folder / "two" / "v1_flat").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    resumed = alone(folder / "flat_in_one", resume=str(first), **settings)
    assert_same({**one, "norms": one["norms"][-len(resumed["norms"]) :]}, resumed)


@VERSIONS
def test_a_failing_run_hangs_nobody(version: str, two: dict[str, dict[str, Any]]) -> None:
    assert two[f"{version}_fails"]["failed"] == "as it was told"
    assert 0 < two[f"{version}_fails"]["after"] < 2


@VERSIONS
def test_out_of_memory_is_for_one_process(version: str, two: dict[str, dict[str, Any]]) -> None:
    """A rank that runs out while the others wait for its shards cannot be left by them: said before the first step."""
    error = two[f"{version}_memory"]["error"]
    assert "auto_find_batch_size=True is not there for several processes under the strategy 'fsdp'" in error


def test_one_process(folder: Path, one: dict[str, Any]) -> None:
    """Without any launcher: a group of one."""
    assert "WORLD_SIZE" not in os.environ
    for version in (1, 2):
        made = alone(folder / f"single_{version}", fsdp="full_shard auto_wrap", fsdp_version=version)
        assert_same(one, made)
        assert made["seen"]["strategy"] == "FSDPStrategy"
    assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def four(folder: Path, first_checkpoint: str, two: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    of_two = min((folder / "two" / "v1_hybrid").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    in_twos = {"plugins": {"fsdp": {"shard_size": 2}}}
    scenarios = {
        "v2": fsdp(),
        "v2_hybrid": fsdp("hybrid_shard auto_wrap", **in_twos),
        "v2_resumed": fsdp(resume=first_checkpoint),
        "v2_from_v1": fsdp(resume=str(of_two)),
        "v1": fsdp(**V1),
        "v1_hybrid": fsdp("hybrid_shard auto_wrap", **in_twos, **V1),
        "v2_spread": fsdp("hybrid_shard auto_wrap", **in_twos, **SPREAD, **EVERY_EPOCH),
        "v1_resumed": fsdp(resume=first_checkpoint, **V1),
        "v1_flat": fsdp(fsdp_config={"use_orig_params": False}, **V1, **FLAT),
    }
    return launch(folder / "four", scenarios, processes=4)


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", ["v2", "v2_hybrid", "v2_resumed", "v2_from_v1", "v1", "v1_hybrid", "v1_resumed"]
)
def test_four_processes_are_one(name: str, one: dict[str, Any], four: dict[str, dict[str, Any]]) -> None:
    """One of them has no row of the parameters with 5; checkpoints come from one process and from two."""
    found = four[name]
    assert_same({**one, "norms": one["norms"][-len(found["norms"]) :]}, found)
    assert found["plain"]


@pytest.mark.slow
def test_of_two_copies_one_is_written(
    folder: Path, one: dict[str, Any], four: dict[str, dict[str, Any]]
) -> None:
    """Two processes share each copy of the model, and the second two write nothing but their random states."""
    first = min((folder / "four" / "v2_spread").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert [bool(read_header(str(first / f"model-{n:05d}-of-00004.safetensors"))) for n in (1, 2, 3, 4)] == [
        True, True, False, False,
    ]  # fmt: skip
    resumed = alone(folder / "four_spread_in_one", resume=str(first), **EVERY_EPOCH)
    assert_same({**one, "norms": one["norms"][-len(resumed["norms"]) :]}, resumed)


@pytest.mark.slow
def test_replicas_of_shards(four: dict[str, dict[str, Any]]) -> None:
    for name in ("v2_hybrid", "v1_hybrid"):
        for rank in four[name]["ranks"]:
            assert rank["seen"]["mesh"] == [2, 2]
            assert 0.4 < rank["seen"]["kept"] / rank["seen"]["whole"] < 0.6
    for rank in four["v2"]["ranks"]:
        assert rank["seen"]["kept"] / rank["seen"]["whole"] < 0.4
