"""Every option of `fsdp` and `fsdp_config` reaches the engine, does nothing and says so, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plugins.strategy.fsdp_model import assert_same
from plugins.strategy.test_fsdp import alone, fsdp, launch

from drivetrain import TrainingArguments
from drivetrain_plugins.strategy.fsdp.options import FSDPOptions, inert, read_settings

CLASSES = {"transformer_layer_cls_to_wrap": "Block"}
V1 = {"fsdp_version": 1}
BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]
HALF = {"param_dtype": "bfloat16", "reduce_dtype": "float32"}

USED: dict[str, dict[str, Any]] = {
    "one_unit": fsdp("full_shard"),
    "classes": fsdp("full_shard auto_wrap", fsdp_config=CLASSES),
    "prefixed": fsdp(fsdp_config={"fsdp_transformer_layer_cls_to_wrap": ["LayerNorm", "Block"]}),
    "size": fsdp(fsdp_config={"fsdp_min_num_params": 170}),
    "second": fsdp(
        fsdp_config={**CLASSES, "forward_prefetch": True, "activation_checkpointing": True},
        plugins={"fsdp": {"unused_parameters": True}},
    ),
    "stays": fsdp(fsdp_config={"reshard_after_forward": False}),
    "half2": fsdp(fsdp_config={"mixed_precision": HALF}),
    "first": fsdp(
        fsdp_config={
            **CLASSES,
            "backward_prefetch": "BACKWARD_POST",
            "forward_prefetch": "true",
            "limit_all_gathers": False,
            "activation_checkpointing": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "sync_module_states": False,
        },
        **V1,
    ),
    "first_plain": fsdp(fsdp_config={"backward_prefetch": None}, **V1),
    "half1": fsdp(fsdp_config={"mixed_precision": HALF}, **V1),
    "branch": fsdp(hard={"branch": True}, plugins={"fsdp": {"unused_parameters": True}}),
    "sgd": fsdp(optim="sgd", max_grad_norm=0.0),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "adafactor": (fsdp(optim="adafactor"), "Adafactor does not work element by element, and strategy 'fsdp'"),
    "muon": (fsdp(optim="muon"), "Optimizer MuonWithAdamW does not work element by element"),
    "class": (
        fsdp(fsdp_config={"transformer_layer_cls_to_wrap": "Blok"}),
        "names 'Blok', which Hard has not. Did you mean 'Block'? It has: Block, Hard",
    ),
    "key": (
        fsdp(fsdp_config={"min_num_parms": 3}),
        "fsdp_config has no option 'min_num_parms'. Did you mean 'min_num_params'?",
    ),
    "value": (
        fsdp(fsdp_config={"backward_prefetch": "later"}),
        "fsdp_config's backward_prefetch='later' must be one of 'backward_pre', 'backward_post', 'no_prefetch'.",
    ),
    "offload": (fsdp("full_shard offload"), "this run is on the CPU: leave 'offload' out"),
    "offload1": (fsdp("full_shard offload", **V1), "this run is on the CPU: leave 'offload' out"),
    "xla": (fsdp(fsdp_config={"xla": True}), "is FSDP of torch_xla, which the strategy 'fsdp' is not"),
    "twice": (
        fsdp(fsdp_config={"activation_checkpointing": True}, gradient_checkpointing=True),
        "both compute activations again: keep one of them",
    ),
    "no_blocks": (
        fsdp("full_shard", fsdp_config={"activation_checkpointing": True}),
        "activation_checkpointing needs blocks to compute again: add auto_wrap to fsdp",
    ),
    "decay": (
        fsdp(fsdp_config={"use_orig_params": False}, hard={"frozen": False}, **V1),
        "use_orig_params=False puts parameters of groups with different options (such as weight decay) into one",
    ),
    "frozen": (
        fsdp(fsdp_config={"use_orig_params": False}, **V1),
        "use_orig_params=False cannot have trained and frozen parameters in one unit",
    ),
    "hybrid": (
        fsdp("hybrid_shard", plugins={"fsdp": {"shard_size": 3}}),
        "cannot deal 2 processes out in groups of 3: set shard_size in plugins={'fsdp': {...}} to one of 1, 2.",
    ),
    "no_hybrid": (fsdp(plugins={"fsdp": {"shard_size": 2}}), "is of hybrid_shard alone"),
    "both_half": (fsdp(fsdp_config={"mixed_precision": HALF}, bf16=True), "keep one of them"),
    "dtype": (
        fsdp(fsdp_config={"mixed_precision": {"param_dtype": "int8"}}),
        "mixed_precision's param_dtype='int8' must be one of float32, bfloat16, float16.",
    ),
    "reshard1": (fsdp(fsdp_config={"reshard_after_forward": True}, **V1), "is version 2's"),
    "elsewhere": (fsdp(fsdp_config={"sharding_strategy": 1}), "does not take 'sharding_strategy': set fsdp."),
    "listener": (
        fsdp(plugins={"enable": ["gradient_norms"]}),
        "Strategy 'fsdp' cannot show gradients, which callback:gradient_norms reads",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp_options")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, dict[str, Any]]:
    return launch(folder / "two", {**USED, **{name: settings for name, (settings, _) in REFUSED.items()}})


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return alone(folder / "one")


@pytest.mark.parametrize(
    "name", ["one_unit", "classes", "prefixed", "size", "stays", "first_plain", "second", "first"]
)
def test_the_run_is_the_same(name: str, one: dict[str, Any], two: dict[str, dict[str, Any]]) -> None:
    result = two[name]
    weights = {
        key: value * (2 if key.endswith("forwards") and name in ("second", "first") else 1)
        for key, value in one["weights"].items()  # the blocks' activations are computed twice
    }
    assert_same({**one, "weights": weights}, result)
    assert result["plain"]


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("one_unit", []),
        ("classes", BLOCKS),
        ("prefixed", sorted([*BLOCKS, *(f"{name}.norm" for name in BLOCKS)])),
        ("size", BLOCKS),
    ],
)
def test_what_is_wrapped(name: str, units: list[str], two: dict[str, dict[str, Any]]) -> None:
    assert two[name]["seen"]["units"] == units


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "second",
            {"forward_prefetch": 1, "unused": True, "reshards_after_forward": True, "forwards": 2 * 6},
        ),
        ("stays", {"reshards_after_forward": False, "forward_prefetch": 0, "unused": False}),
        ("half2", {"param_dtype": "torch.bfloat16", "reduce_dtype": "torch.float32"}),
        (
            "first",
            {
                "backward_prefetch": "BACKWARD_POST",
                "forward_prefetch": True,
                "limit_all_gathers": False,
                "use_orig_params": True,
                "state_dict_type": "SHARDED_STATE_DICT",
                "forwards": 2 * 6,
            },
        ),
        (
            "first_plain",
            {
                "backward_prefetch": None,
                "forward_prefetch": False,
                "limit_all_gathers": True,
                "sharding": "FULL_SHARD",
                "state_dict_type": "FULL_STATE_DICT",
            },
        ),
        ("half1", {"param_dtype": "torch.bfloat16", "reduce_dtype": "torch.float32"}),
    ],
)
def test_the_engine_has_it(name: str, expected: dict[str, Any], two: dict[str, dict[str, Any]]) -> None:
    assert {key: two[name]["seen"][key] for key in expected} == expected


def test_ranks_may_use_different_parameters(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert_same(alone(folder / "branch", hard={"branch": True}), two["branch"])


def test_another_optimizer_and_no_clipping(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert_same(alone(folder / "sgd", optim="sgd", max_grad_norm=0.0), two["sgd"])


@pytest.mark.parametrize("name", ["half1", "half2"])
def test_the_engines_own_half_precision(
    name: str, one: dict[str, Any], two: dict[str, dict[str, Any]]
) -> None:
    assert two[name]["loss"] == pytest.approx(one["loss"], rel=2e-2)
    assert two[name]["loss"] != pytest.approx(one["loss"], rel=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_on_every_rank(name: str, two: dict[str, dict[str, Any]]) -> None:
    for rank in two[name]["ranks"]:
        assert REFUSED[name][1] in rank["error"]


def test_what_does_nothing_is_said() -> None:
    config = {
        "use_orig_params": True,
        "limit_all_gathers": False,
        "backward_prefetch": "backward_post",
        "xla_fsdp_grad_ckpt": True,
    }
    args = TrainingArguments("unused", fsdp="full_shard", fsdp_config=config, use_cpu=True)
    settings, problems = read_settings(args)
    assert not problems
    lines = inert(args, settings)
    for name in config:
        assert sum(f"fsdp_config's {name}" in line and "no effect" in line for line in lines) == 1
    args = TrainingArguments("unused", fsdp="full_shard", fsdp_config=config, fsdp_version=1, use_cpu=True)
    assert len(inert(args, read_settings(args)[0])) == 1  # xla's


def test_own_options_are_checked() -> None:
    for wrong in ({"shard_size": 0}, {"shard_size": "two"}, {"unused_parameters": 1}, {"pin_memory": "yes"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FSDPOptions(**wrong)
