"""Every "auto" of the configuration, from the arguments; and what contradicts them.

Facts of which key follows which argument are those documented for 4.34.0. Two things differ, because here
precision belongs to the precision plugin under every strategy: `bf16.enabled` and `fp16.enabled` are the
engine's *own* half precision, in which weights themselves are halved, and "auto" never asks for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from drivetrain_plugins.strategy.deepspeed.configuration import AUTO, Configuration

ADAM = ("adam", "adamw")
_WARMUP = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
HIDDEN_SIZE = (
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
)
"""What 4.34.0 derives from the model's hidden size."""
OF_STAGE_3 = "zero_optimization.stage3_"


def fill_from_arguments(config: Configuration, args: Any, world_size: int) -> list[str]:
    """Fills in what the arguments alone decide.

    Args:
        config: changed in place.
        args: the arguments.
        world_size: how many processes there are.

    Returns:
        One sentence for each contradiction.
    """
    problems = list(_match_all(config, _of_batches(args, world_size)))
    clip = args.max_grad_norm or 0.0
    problems += _match(config, "gradient_clipping", clip, "max_grad_norm", always=True)
    problems += _match_all(config, _of_optimizer(config, args))
    problems += _match_all(config, _of_scheduler(config, args))
    problems += _precision(config, args)
    if config.stage < 3:
        for name in [name for name in config.autos() if name.startswith(OF_STAGE_3)]:
            config.remove(name)
    elif config.get("zero_optimization.stage3_gather_16bit_weights_on_model_save", AUTO) == AUTO:
        config.set("zero_optimization.stage3_gather_16bit_weights_on_model_save", True)
    known = {*HIDDEN_SIZE, "scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps"}
    problems += [
        f"deepspeed: nothing fills the 'auto' of {name}; write a value there."
        for name in config.autos()
        if name not in known
    ]
    return problems


def fill_from_run(
    config: Configuration, args: Any, model: Any, max_steps: int, batch_size: int, accumulation: int
) -> list[str]:
    """Fills in what is known once the model and the length of the run are.

    Args:
        config: changed in place.
        args: the arguments.
        model: the bare model; its `config` may tell a hidden size.
        max_steps: updates of the run; 0 where nothing is trained.
        batch_size: rows a process and micro-batch.
        accumulation: micro-batches an update, which a resumed run may have changed.

    Returns:
        One sentence for each contradiction.
    """
    problems = list(fill_hidden_size(config, model))
    kind = config.get("scheduler.type")
    if kind in _WARMUP and max_steps:
        warmup = args.get_warmup_steps(max_steps)
        said = "warmup_steps" if args.warmup_steps > 0 else "warmup_ratio"
        missing = args.is_set("warmup_steps") or args.is_set("warmup_ratio")
        problems += _match(config, "scheduler.params.warmup_num_steps", warmup, said, missing)
        if kind != "WarmupLR":
            what = "the number of updates of this run"
            problems += _match(config, "scheduler.params.total_num_steps", max_steps, what, True)
    config.set("train_micro_batch_size_per_gpu", batch_size)
    config.set("gradient_accumulation_steps", accumulation)
    config.remove("train_batch_size")  # DeepSpeed multiplies the two with the number of processes
    return problems


def fill_hidden_size(config: Configuration, model: Any) -> Iterator[str]:
    """Sizes of ZeRO's buckets from the model's hidden size; a sentence where it tells none."""
    wanted = [name for name in HIDDEN_SIZE if config.get(name) == AUTO]
    if not wanted:
        return
    facts = getattr(model, "config", None)
    size = getattr(facts, "hidden_size", None)
    if size is None and getattr(facts, "hidden_sizes", None):
        size = max(facts.hidden_sizes)  # type: ignore[union-attr]
    if size is None and getattr(facts, "text_config", None) is not None:
        size = getattr(facts.text_config, "hidden_size", None)  # type: ignore[union-attr]
    if not isinstance(size, int):
        yield (
            f"deepspeed: the 'auto' of {', '.join(wanted)} is filled from the model's config.hidden_size, "
            f"which {type(model).__name__} does not have; write a number there."
        )
        return
    values = (size * size, int(0.9 * size * size), 10 * size)
    for name, value in zip(HIDDEN_SIZE, values, strict=True):
        if config.get(name) == AUTO:
            config.set(name, value)


# What must match: name in the configuration, value by the arguments, the argument's name, and whether a key
# that is not there is written too.
_Entry = tuple[str, Any, str, bool]


def _of_batches(args: Any, world_size: int) -> Iterator[_Entry]:
    micro, accumulation = args.train_batch_size, args.gradient_accumulation_steps
    yield "train_micro_batch_size_per_gpu", micro, "per_device_train_batch_size", True
    yield "gradient_accumulation_steps", accumulation, "gradient_accumulation_steps", True
    said = "per_device_train_batch_size * gradient_accumulation_steps * processes"
    yield "train_batch_size", micro * accumulation * world_size, said, False


def _of_optimizer(config: Configuration, args: Any) -> Iterator[_Entry]:
    if config.get("optimizer") is None:
        return
    start = "optimizer.params"
    yield f"{start}.lr", args.learning_rate, "learning_rate", args.is_set("learning_rate")
    decay = args.is_set("weight_decay")
    yield f"{start}.weight_decay", args.weight_decay, "weight_decay", decay
    adam = str(config.get("optimizer.type")).lower() in ADAM
    betas = adam and (args.is_set("adam_beta1") or args.is_set("adam_beta2"))
    yield f"{start}.betas", [args.adam_beta1, args.adam_beta2], "adam_beta1 and adam_beta2", betas
    yield f"{start}.eps", args.adam_epsilon, "adam_epsilon", adam and args.is_set("adam_epsilon")


def _of_scheduler(config: Configuration, args: Any) -> Iterator[_Entry]:
    if config.get("scheduler") is None:
        return
    if config.get("scheduler.params.warmup_min_lr") == AUTO:
        config.set("scheduler.params.warmup_min_lr", 0)
    follows = config.get("scheduler.type") in ("WarmupLR", "WarmupDecayLR")
    missing = follows and args.is_set("learning_rate")
    yield "scheduler.params.warmup_max_lr", args.learning_rate, "learning_rate", missing


def _precision(config: Configuration, args: Any) -> Iterator[str]:
    for word in ("bf16", "fp16"):
        value, asked = config.get(f"{word}.enabled"), bool(getattr(args, word))
        if value == AUTO:
            config.set(f"{word}.enabled", False)
        elif value is False and asked:
            yield _contradiction(f"{word}.enabled", False, word, True)
    if config.on("bf16") and config.on("fp16"):
        yield "deepspeed sets both bf16.enabled and fp16.enabled: keep one of them."
    for word, other in (("bf16", "fp16"), ("fp16", "bf16")):
        if config.on(word) and getattr(args, other):
            yield _contradiction(f"{word}.enabled", True, other, True)
    if config.get("amp.enabled") == AUTO:
        config.remove("amp")
    elif config.on("amp"):
        yield (
            "deepspeed: amp.enabled is Apex's mixed precision, whose place torch's autocast took: take it out, and set "
            "bf16=True or fp16=True."
        )


def _match_all(config: Configuration, entries: Iterator[_Entry]) -> Iterator[str]:
    for name, value, argument, missing in entries:
        yield from _match(config, name, value, argument, missing)


def _match(
    config: Configuration, name: str, value: Any, argument: str, always: bool = False
) -> Iterator[str]:
    """Fills an "auto", and a key that is not there where `always`; else compares."""
    present = config.get(name)
    if present == AUTO or (present is None and always):
        config.set(name, value)
    elif present is not None and not _equal(present, value):
        yield _contradiction(name, present, argument, value)


def _contradiction(name: str, present: Any, argument: str, value: Any) -> str:
    shown = f"{argument}={value!r}" if argument.isidentifier() else f"{argument} is {value!r}"
    return f"deepspeed sets {name}={present!r}, but {shown}: write 'auto' there, or make the two equal."


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other)]
    if all(numbers):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=0.0)
    return bool(one == other)
