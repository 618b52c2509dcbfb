"""Every option of DDP reaches the engine, and the run stays the run of one process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.scenarios import Rich, assert_same, launch, run
from support.toy import trainer

from drivetrain import ConfigurationError
from drivetrain_plugins.strategy.ddp import sync_batch_norms

PLAIN = {"model": "rich", "weight_decay": 0.1, "max_grad_norm": 0.5}


def options(**chosen: Any) -> dict[str, Any]:
    return {"plugins": {"ddp": chosen}}


EXACT: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "accumulated": {**PLAIN, "gradient_accumulation_steps": 3},
    "static": {**PLAIN, "ddp_find_unused_parameters": False, **options(static_graph=True)},
    "static_accumulated": {
        **PLAIN,
        "ddp_find_unused_parameters": False,
        "gradient_accumulation_steps": 3,
        **options(static_graph=True),
    },
    "views": {**PLAIN, "gradient_accumulation_steps": 2, **options(gradient_as_bucket_view=True)},
    "one_megabyte": {
        "model": "wide",
        "optim": "sgd",
        "ddp_bucket_cap_mb": 1,
        "ddp_find_unused_parameters": False,
    },
    "many_megabytes": {
        "model": "wide",
        "optim": "sgd",
        "ddp_bucket_cap_mb": 100,
        "ddp_find_unused_parameters": False,
    },
    "buffers_apart": {**PLAIN, "ddp_broadcast_buffers": False},
    "frozen": {**PLAIN, "model": "frozen"},
    "unused": {**PLAIN, "model": "unused", "gradient_accumulation_steps": 2},
    "branch": {**PLAIN, "model": "branch", "gradient_accumulation_steps": 2},
    "unsynced_start": {**PLAIN, **options(init_sync=False)},
    "finished": {"model": "rich", "finished": "adamw", "twice": True},
    "own_hook": {**PLAIN, **options(comm_hook="support.hooks:averaged", comm_hook_options={"tag": 7})},
}
ROUGH: dict[str, dict[str, Any]] = {
    "fp16_hook": {**PLAIN, **options(comm_hook="fp16_compress")},
    "power_sgd": {
        **PLAIN,
        **options(
            comm_hook="powerSGD", comm_hook_options={"start_powerSGD_iter": 2, "matrix_approximation_rank": 4}
        ),
    },
}
# Long enough for the reductions of callbacks and those of the reducer to get in each other's way.
LONG: dict[str, Any] = {
    **PLAIN,
    "num_train_epochs": 30,
    **options(comm_hook="powerSGD", comm_hook_options={"start_powerSGD_iter": 2}),
}
WRONG: dict[str, dict[str, Any]] = {
    "bf16_hook": {**PLAIN, **options(comm_hook="bf16_compress")},
    "never_used": {**PLAIN, "model": "unused", "ddp_find_unused_parameters": False},
    "sync_batch_norm": {**PLAIN, **options(sync_batch_norm=True)},
    "no_such_function": {**PLAIN, **options(comm_hook="support.hooks:avreaged")},
    "power_sgd_refuses": {
        **PLAIN,
        **options(comm_hook="powerSGD", comm_hook_options={"start_powerSGD_iter": 1}),
    },
}


def without_engine(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "plugins" and not key.startswith("ddp_")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(tmp_path_factory.mktemp("two"), {**EXACT, **ROUGH, **WRONG, "long": LONG})


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_are_one(two: dict[str, Any], name: str, tmp_path: Path) -> None:
    found = two[name]
    assert_same(run(tmp_path, name, without_engine(EXACT[name]), processes=1), found)
    assert "torch.nn.parallel.distributed.DistributedDataParallel" in found["wrapped"]
    assert found["ranks_equal"]
    assert not found["wrapper_left"]
    assert found["hooks_left"] == 0


@pytest.mark.parametrize("name", ROUGH)
def test_a_hook_that_compresses_trains_nearly_the_same(two: dict[str, Any], name: str) -> None:
    found, plain = two[name], two["plain"]
    assert found["ranks_equal"]
    differ = [
        float((found["weights"][key] - plain["weights"][key]).abs().max())
        for key in plain["weights"]
        if plain["weights"][key].is_floating_point()
    ]
    assert 0 < max(differ) < 0.1  # it did compress, and it did train


def test_power_sgd_comes_to_its_end(two: dict[str, Any]) -> None:
    assert two["long"]["error"] is None
    assert two["long"]["ranks_equal"]


def test_the_options_reach_the_engine(two: dict[str, Any]) -> None:
    said = {name: found["ddp"] for name, found in two.items() if found.get("ddp")}
    plain = said["plain"]
    assert plain["find_unused_parameters"] == 1
    assert plain["broadcast_buffers"] == 1
    assert two["plain"]["static_graph"] is False
    assert plain["gradient_as_bucket_view"] == 0
    assert "comm_hook" not in plain
    assert plain["backend_name"] == "gloo"
    assert two["static"]["static_graph"] is two["static_accumulated"]["static_graph"] is True
    assert said["static"]["find_unused_parameters"] == 0
    assert said["views"]["gradient_as_bucket_view"] == 1
    assert said["buffers_apart"]["broadcast_buffers"] == 0
    assert said["one_megabyte"]["bucket_cap_bytes"] == 2**20
    assert said["many_megabytes"]["bucket_cap_bytes"] == 100 * 2**20
    count = {
        name: len(said[name]["rebuilt_bucket_sizes"].split(","))
        for name in ("one_megabyte", "many_megabytes")
    }
    assert count["one_megabyte"] > count["many_megabytes"]
    assert "fp16_compress_hook" in said["fp16_hook"]["comm_hook"]
    assert "powerSGD_hook" in said["power_sgd"]["comm_hook"]
    assert "averaged" in said["own_hook"]["comm_hook"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "never_used",
            "Some parameters had no part in the loss of a micro-batch, which DDP was told not to look for: set "
            "ddp_find_unused_parameters=True.",
        ),
        ("bf16_hook", "comm_hook='bf16_compress' of the strategy 'ddp' cannot be here: BF16 all reduce"),
        (
            "sync_batch_norm",
            "sync_batch_norm of the strategy 'ddp' needs CUDA devices, and this run is on CPU: leave it out.",
        ),
        ("no_such_function", "comm_hook='support.hooks:avreaged' of the strategy 'ddp' cannot be imported: "),
        (
            "power_sgd_refuses",
            "comm_hook='powerSGD' of the strategy 'ddp' cannot be here: Expect `start_powerSGD_iter`",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence_on_every_rank(two: dict[str, Any], name: str, sentence: str) -> None:
    assert len(two[name]["errors"]) == 2
    for error in two[name]["errors"]:
        assert error.startswith(f"ConfigurationError: {sentence}")


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"comm_hook": "fp16_compres"}, "unknown comm_hook 'fp16_compres'. Did you mean 'fp16_compress'?"),
        (
            {"comm_hook": "powerSGD", "comm_hook_options": {"rank": 4}},
            "comm_hook 'powerSGD' has no option 'rank'.",
        ),
        ({"comm_hook": "batched_powerSGD"}, "comm_hook 'batched_powerSGD' is broken in torch"),
        ({"comm_hook_options": {"rank": 4}}, "option 'comm_hook_options' needs comm_hook."),
        ({"comm_hook": "fp16_compress", "comm_hook_options": {"a": 1}}, "takes no comm_hook_options"),
    ],
)
def test_wrong_options(tmp_path: Path, chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, strategy="ddp", plugins={"ddp": chosen}).train()
    assert sentence in str(caught.value)


def test_in_one_process_they_do_nothing_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {
        "ddp_bucket_cap_mb": 3,
        "ddp_find_unused_parameters": True,
        "ddp_broadcast_buffers": False,
        "ddp_timeout": 60,
    }
    with caplog.at_level(logging.WARNING, logger="drivetrain"):
        trainer(tmp_path, max_steps=1, save_strategy="no", **chosen, **options(static_graph=True)).train()
    for name in (*chosen, "plugins['ddp']"):
        assert [
            record for record in caplog.messages if record.startswith(name) and "has no effect" in record
        ], name


def test_batch_normalisation_over_all_ranks_is_put_in_place() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4)), Rich())
    before, keys = model[1][0], list(model.state_dict())
    places = sync_batch_norms(model)
    assert isinstance(model[1][0], torch.nn.SyncBatchNorm)
    assert model[1][0].weight is before.weight
    assert model[1][0].running_mean is before.running_mean
    assert list(model.state_dict()) == keys
    assert places == [(model[1], "0", before)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm needs a CUDA device")
def test_batch_normalisation_over_all_ranks(tmp_path: Path) -> None:
    settings = {"model": "normalised", "use_cpu": False, **options(sync_batch_norm=True)}
    processes = torch.cuda.device_count()
    found = launch(tmp_path / "ranks", {"sync": settings}, processes=processes)["sync"]
    one = run(tmp_path, "one", {"model": "normalised", "use_cpu": False}, processes=1)
    assert_same(one, found, tolerance=1e-3)
