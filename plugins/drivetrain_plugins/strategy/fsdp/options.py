"""The options of `fsdp`: the documented `fsdp`, `fsdp_config` and `fsdp_version`, and this plugin's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drivetrain.errors import did_you_mean
from drivetrain.options import convert, describe

MODES = ("full_shard", "shard_grad_op", "hybrid_shard", "no_shard")
PREFETCH = ("backward_pre", "backward_post", "no_prefetch")
STATE_DICTS = ("full_state_dict", "sharded_state_dict")
DTYPES = ("float32", "bfloat16", "float16")
_MIXED = {
    "param_dtype": str | None,
    "reduce_dtype": str | None,
    "buffer_dtype": str | None,
    "output_dtype": str | None,
    "cast_forward_inputs": bool,
}


@dataclass(frozen=True)
class FSDPOptions:
    """Options of the strategy `fsdp` that have no documented argument.

    Attributes:
        weights: a safetensors file, or a folder with `model.safetensors` or its shards, that the model's
            weights are read from once it is sharded, each process reading its own part.
        shard_size: under hybrid_shard, processes among which one copy of the model is spread; by default
            those of a node.
        unused_parameters: whether processes may use different parameters in a step (conditional branches,
            mixtures of experts). A parameter that none of them used then has a gradient of zero. Version 2.
        pin_memory: under offload, whether the weights rest in pinned host memory.
    """

    weights: str | None = None
    shard_size: int | None = None
    unused_parameters: bool = False
    pin_memory: bool = True

    def __post_init__(self) -> None:
        if self.shard_size is not None and (type(self.shard_size) is not int or self.shard_size < 1):
            raise ValueError(f"shard_size={self.shard_size!r} must be a whole number of at least 1.")
        for name in ("unused_parameters", "pin_memory"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False.")


@dataclass(frozen=True)
class Settings:
    """What the arguments ask of FSDP, in one form for both generations.

    Attributes:
        version: 1 is `FullyShardedDataParallel`, 2 is `fully_shard`.
        mode: one of `MODES`.
        offload: weights, gradients and optimizer state rest in host memory.
        auto_wrap: find what to wrap where neither class nor size is named.
        min_num_params: a module with as many parameters, its wrapped parts left out, is wrapped.
        transformer_layer_cls_to_wrap: names of the classes that are wrapped.
        backward_prefetch: one of `PREFETCH`.
        forward_prefetch: gather the next block's weights while one computes.
        limit_all_gathers: at most two blocks' weights are being gathered at a time.
        use_orig_params: version 1 keeps the model's own parameters instead of flat ones.
        sync_module_states: the first process's weights and buffers are sent to all before sharding.
        activation_checkpointing: the wrapped blocks' activations are computed again in the backward pass.
        reshard_after_forward: None for what `mode` says.
        state_dict_type: whether rank 0 gathers and writes checkpoints, or each rank whole tensors of some parameters;
            under version 1 also what the wrapped model's own `state_dict()` gives.
        cpu_ram_efficient_loading: no process holds the whole model while it is built.
        mixed_precision: the engine's own policy, by the names of `_MIXED`; empty for none.
        given: the names that were set in `fsdp_config`.
    """

    version: int = 2
    mode: str = "full_shard"
    offload: bool = False
    auto_wrap: bool = False
    min_num_params: int = 0
    transformer_layer_cls_to_wrap: tuple[str, ...] = ()
    backward_prefetch: str = "backward_pre"
    forward_prefetch: bool = False
    limit_all_gathers: bool = True
    use_orig_params: bool = True
    sync_module_states: bool = True
    activation_checkpointing: bool = False
    reshard_after_forward: bool | None = None
    state_dict_type: str = "full_state_dict"
    cpu_ram_efficient_loading: bool = False
    mixed_precision: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()


_KINDS: dict[str, Any] = {
    "min_num_params": int,
    "transformer_layer_cls_to_wrap": list[str] | None,
    "backward_prefetch": str | None,
    "forward_prefetch": bool,
    "limit_all_gathers": bool,
    "use_orig_params": bool,
    "sync_module_states": bool,
    "activation_checkpointing": bool,
    "reshard_after_forward": bool | None,
    "state_dict_type": str,
    "cpu_ram_efficient_loading": bool,
    "mixed_precision": dict,
}
_ELSEWHERE = {
    "version": "fsdp_version",
    "sharding_strategy": "fsdp",
    "offload_params": "fsdp='... offload'",
    "cpu_offload": "fsdp='... offload'",
    "auto_wrap_policy": "fsdp='... auto_wrap' or transformer_layer_cls_to_wrap",
}
_XLA = ("xla", "xla_fsdp_settings", "xla_fsdp_grad_ckpt", "xla_fsdp_v2")
_CHOICES = {"backward_prefetch": PREFETCH, "state_dict_type": STATE_DICTS}


def read_settings(args: Any) -> tuple[Settings, list[str]]:
    """The settings that the arguments mean, and what is wrong with them, each one sentence."""
    problems: list[str] = []
    words = [str(getattr(word, "value", word)) for word in args.fsdp or ()]
    modes = [word for word in words if word in MODES]
    values: dict[str, Any] = {}
    config: Mapping[str, Any] = args.fsdp_config or {}
    for key, given in config.items():
        if key in _XLA:
            problems += _xla(key, given)
        elif key in _ELSEWHERE:
            problems.append(f"fsdp_config does not take {key!r}: set {_ELSEWHERE[key]}.")
        elif key not in _KINDS:
            problems.append(
                f"fsdp_config has no option {key!r}.{did_you_mean(key, _KINDS)} It has: {', '.join(sorted(_KINDS))}."
            )
        else:
            try:
                values[key] = _read(key, given)
            except (TypeError, ValueError):
                problems.append(f"fsdp_config's {key}={given!r} must be {_kind(key)}.")
    if values.get("mixed_precision"):
        problems += _mixed_problems(values["mixed_precision"])
    given_names = frozenset(key for key in values if key != "min_num_params" or values[key])
    settings = Settings(
        version=args.fsdp_version,
        mode=modes[0] if modes else "full_shard",
        offload="offload" in words,
        auto_wrap="auto_wrap" in words,
        given=given_names,
        **values,
    )
    return settings, problems


def _read(key: str, given: Any) -> Any:
    value = convert(given, _KINDS[key]) if key != "mixed_precision" else given
    if key == "mixed_precision":
        if not isinstance(value, Mapping):
            raise TypeError(value)
        return dict(value)
    if key == "transformer_layer_cls_to_wrap":
        return tuple(value or ())
    if key == "min_num_params" and value < 0:
        raise ValueError(value)
    if key in _CHOICES:
        word = "no_prefetch" if value is None else value.lower()
        if word not in _CHOICES[key]:
            raise ValueError(value)
        return word
    return value


def _kind(key: str) -> str:
    if key in _CHOICES:
        return "one of " + ", ".join(repr(choice) for choice in _CHOICES[key])
    if key == "mixed_precision":
        return f"a dict of {', '.join(_MIXED)}"
    return "a number of at least 0" if key == "min_num_params" else describe(_KINDS[key])


def _mixed_problems(given: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, value in given.items():
        if key not in _MIXED:
            problems.append(
                f"fsdp_config's mixed_precision has no {key!r}.{did_you_mean(key, _MIXED)} It has: {', '.join(_MIXED)}."
            )
        elif key == "cast_forward_inputs":
            if type(value) is not bool:
                problems.append(f"mixed_precision's cast_forward_inputs={value!r} must be True or False.")
        elif value is not None and value not in DTYPES:
            problems.append(f"mixed_precision's {key}={value!r} must be one of {', '.join(DTYPES)}.")
    return problems


def _xla(key: str, given: Any) -> list[str]:
    if key in ("xla", "xla_fsdp_v2") and given:
        return [
            f"fsdp_config's {key}=True is FSDP of torch_xla, which the strategy 'fsdp' is not: leave it out, or "
            "use strategy='xla' on a TPU."
        ]
    return []


def inert(args: Any, settings: Settings) -> list[str]:
    """One sentence for each option that is set and does nothing here."""
    lines = []
    config: Mapping[str, Any] = args.fsdp_config or {}
    for key in ("xla_fsdp_settings", "xla_fsdp_grad_ckpt"):
        if config.get(key):
            lines.append(f"fsdp_config's {key} has no effect: xla is not set.")
    if settings.version == 2:
        why = {
            "use_orig_params": "version 2 always keeps the model's own parameters",
            "limit_all_gathers": "version 2 never gathers more than two blocks at a time",
        }
        lines += [
            f"fsdp_config's {key} has no effect: {why[key]}." for key in sorted(why) if key in settings.given
        ]
        if settings.backward_prefetch != "backward_pre":
            lines.append(
                f"fsdp_config's backward_prefetch={settings.backward_prefetch!r} has no effect: version 2 prefetches "
                "in the reverse order of the forward pass."
            )
    return lines
