"""The strategies that are tried: a line each. Whatever is said here is held against the real engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, eq=False)
class Configuration:
    """One strategy with its settings.

    Attributes:
        name: as the tables show it.
        strategy: the plugin's name.
        arguments: for TrainingArguments.
        engine: class of what wraps the model, and of the optimizer, as far as they are an engine's.
        shards: what is spread over processes: "parameters", "optimizer", or both.
        worlds: numbers of processes it is tried with.
        moves: optimizers whose state is not element by element and which train all the same.
        needs: the package it comes from, where that is not torch.
    """

    name: str
    strategy: str
    arguments: dict[str, Any]
    engine: str
    shards: tuple[str, ...] = ()
    worlds: tuple[int, ...] = (1, 2, 4)
    moves: tuple[str, ...] = ()
    needs: str | None = None


def _fsdp(version: int, mode: str, engine: str) -> Configuration:
    return Configuration(
        f"fsdp{version}-{mode.removeprefix('shard_').replace('_shard', '').replace('_', '-')}",
        "fsdp",
        {
            "fsdp": f"{mode} auto_wrap",
            "fsdp_config": {"transformer_layer_cls_to_wrap": ["Block"]},
            "fsdp_version": version,
        },
        engine,
        ("parameters", "optimizer"),
    )


def _zero(stage: int, optimizer: str, *shards: str) -> Configuration:
    return Configuration(
        f"zero{stage}",
        "deepspeed",
        {"deepspeed": {"zero_optimization": {"stage": stage}}},
        ", ".join(filter(None, ("DeepSpeedEngine", optimizer))),
        shards,
        needs="deepspeed",
        moves=("adafactor", "muon") if stage == 0 else (),
    )


WHOLE = ("adafactor", "muon")
"""What trains where every process holds whole tensors."""

CONFIGURATIONS = {
    made.name: made
    for made in (
        Configuration("single", "single", {}, "", worlds=(1,), moves=WHOLE),
        Configuration(
            "ddp", "ddp", {"strategy": "ddp"}, "DistributedDataParallel", worlds=(2, 4), moves=WHOLE
        ),
        _fsdp(1, "full_shard", "FullyShardedDataParallel"),
        _fsdp(1, "shard_grad_op", "FullyShardedDataParallel"),
        _fsdp(2, "full_shard", "FSDPSmall"),
        _fsdp(2, "shard_grad_op", "FSDPSmall"),
        _zero(0, ""),
        _zero(1, "DeepSpeedZeroOptimizer", "optimizer"),
        _zero(2, "DeepSpeedZeroOptimizer", "optimizer"),
        _zero(3, "DeepSpeedZeroOptimizer_Stage3", "parameters", "optimizer"),
        Configuration(
            "oss",
            "fairscale",
            {"sharded_ddp": "simple"},
            "ShardedDataParallel, OSS",
            ("optimizer",),
            needs="fairscale",
            worlds=(2, 4),
            moves=WHOLE,
        ),
    )
}


@cache
def lacking(configuration: Configuration) -> str | None:
    """What is not installed of it, or None."""
    if configuration.strategy not in entry_points(group="drivetrain.strategy").names:
        return f"no strategy {configuration.strategy!r} is installed"
    if configuration.needs is not None and find_spec(configuration.needs) is None:
        return f"{configuration.needs} is not installed"
    return None
