"""Each optimizer under each strategy is the run of one process, or is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.scenarios import assert_same, launch, run

for module in ("bitsandbytes", "schedulefree", "pytorch_optimizer", "torchao"):
    pytest.importorskip(module)

COMMON: dict[str, Any] = {
    "model": "rich",
    "weight_decay": 0.1,
    "num_train_epochs": 1,
    "data_seed": 3,
    "param_groups": [{"match": "first.*", "lr": 3e-3}],
}
WORDS: dict[str, dict[str, Any]] = {
    "adamw_anyprecision": {
        "optim_args": "use_kahan_summation=true,momentum_dtype=bfloat16,compensation_buffer_dtype=float32"
    },
    "schedule_free_adamw": {
        "lr_scheduler_type": "constant",
        "warmup_steps": 3,
        "evaluation_strategy": "steps",
        "eval_steps": 2,
    },
    "lion": {},
    "lion_32bit": {},
    "adamw_bnb_8bit": {"optim_args": "min_8bit_size=64"},
    "galore_adamw": {"optim_args": "target_modules=all-linear,rank=2,update_proj_gap=3"},
    "adamw_torch_8bit": {},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"fsdp": "full_shard"},
    "fsdp1": {"fsdp": "shard_grad_op", "fsdp_version": 1},
    "grad_op": {"fsdp": "shard_grad_op"},
    "oss": {"sharded_ddp": "simple"},
    "zero0": {"deepspeed": {"zero_optimization": {"stage": 0}}},
    "zero1": {"deepspeed": {"zero_optimization": {"stage": 1}}},
}
SAME = {
    "adamw_anyprecision": ("ddp", "fsdp", "fsdp1", "oss", "zero1"),
    "schedule_free_adamw": ("ddp", "fsdp", "fsdp1", "grad_op", "zero0"),
    "lion": ("fsdp", "zero1"),
    "lion_32bit": ("oss", "zero1"),
    "adamw_bnb_8bit": ("ddp", "oss"),
    "galore_adamw": ("ddp", "oss"),
}
NOT_ELEMENT_WISE = "does not work element by element"
REFUSED = {
    ("schedule_free_adamw", "oss"): "keeps other weights for evaluation",
    ("schedule_free_adamw", "zero1"): "keeps other weights for evaluation",
    ("lion_32bit", "fsdp"): "exclude each other: bitsandbytes updates plain tensors, so use strategy='ddp'",
    ("adamw_bnb_8bit", "zero1"): NOT_ELEMENT_WISE,
    ("galore_adamw", "fsdp"): NOT_ELEMENT_WISE,
    ("galore_adamw", "zero1"): NOT_ELEMENT_WISE,
    ("adamw_torch_8bit", "fsdp"): NOT_ELEMENT_WISE,
}
SAVED = {"save_strategy": "steps", "save_steps": 3}


def settings(word: str, strategy: str | None = None, **more: Any) -> dict[str, Any]:
    engine = {} if strategy is None else STRATEGIES[strategy]
    return {"optim": word, **COMMON, **WORDS[word], **engine, **more}


# Those that are in every session; all of them are in `soak`.
QUICK = {"adamw_anyprecision": ("zero1",), "schedule_free_adamw": ("fsdp", "fsdp1")}
QUICK_REFUSED = [("schedule_free_adamw", "oss")]


def names(same: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    return {f"{word}-{name}": settings(word, name) for word, of_word in same.items() for name in of_word}


def check_same(folder: Path, launched: dict[str, Any], word: str, strategies: tuple[str, ...]) -> None:
    one = run(folder / "one", word, settings(word), 1)
    for name in strategies:
        assert_same(one, launched[f"{word}-{name}"])
        assert launched[f"{word}-{name}"]["ranks_equal"], name


def check_refused(launched: dict[str, Any], word: str, strategy: str) -> None:
    error = launched[f"{word}-{strategy}"]["error"]
    assert REFUSED[word, strategy] in error
    assert "\n" not in error
    assert "use " in error


def check_resumed(folder: Path, launched: dict[str, Any], word: str, name: str) -> None:
    one = run(folder / "one", name, settings(word), 1)
    for key, value in one["weights"].items():
        assert launched[name]["weights"][key].numpy() == pytest.approx(value.numpy(), abs=2e-5, rel=2e-5)


def test_a_strategy_changes_nothing_or_refuses(tmp_path):
    scenarios = names(QUICK) | {f"{word}-{name}": settings(word, name) for word, name in QUICK_REFUSED}
    # What one strategy has written another goes on with: the weights for evaluation and those that are trained.
    scenarios["written"] = settings("schedule_free_adamw", "fsdp", **SAVED)
    written = str(tmp_path / "written" / "checkpoint-3")
    scenarios["resumed"] = settings("schedule_free_adamw", "ddp", resume=written)
    launched = launch(tmp_path, scenarios)
    for word, strategies in QUICK.items():
        check_same(tmp_path, launched, word, strategies)
    for word, strategy in QUICK_REFUSED:
        check_refused(launched, word, strategy)
    check_resumed(tmp_path, launched, "schedule_free_adamw", "resumed")


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_optimizer_under_every_strategy(tmp_path):
    scenarios = names(SAME) | {f"{word}-{name}": settings(word, name) for word, name in REFUSED}
    scenarios["written"] = settings("adamw_anyprecision", "zero1", **SAVED)
    written = str(tmp_path / "written" / "checkpoint-3")
    scenarios["resumed"] = settings("adamw_anyprecision", "fsdp", resume=written)
    launched = launch(tmp_path, scenarios)
    for word, strategies in SAME.items():
        check_same(tmp_path, launched, word, strategies)
    for word, strategy in REFUSED:
        check_refused(launched, word, strategy)
    check_resumed(tmp_path, launched, "adamw_anyprecision", "resumed")
