"""Older and later spellings: each is folded into the argument that took its place, with one warning."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivetrain.arguments.training_arguments import TrainingArguments

RENAMED: dict[str, str] = {
    "eval_strategy": "evaluation_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "fp16_backend": "half_precision_backend",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
}
"""The old name and the argument whose value it now is."""

SILENT = {"eval_strategy"}
"""Later spellings, which nobody need give up."""

GONE: dict[str, str] = {
    "mp_parameters": (
        "mp_parameters asks for SageMaker's model parallelism, which is not there: use fsdp or deepspeed."
    ),
    "dispatch_batches": (
        "dispatch_batches=True is not there: every process reads its own rows, so leave it out, and shard an"
        " IterableDataset by rank."
    ),
}
"""Arguments that nothing takes the place of, and what to do instead. False and empty ask for nothing."""


def fold(args: "TrainingArguments", given: dict[str, Any], first: bool) -> Iterator[str]:
    """Carry every spelling in `given` over to its argument. Yields problems.

    Args:
        given: the spellings that are set and not folded yet, with their values.
        first: whether the arguments are being constructed; only then are both spellings known to be meant.
    """
    for name, value in given.items():
        if name in GONE:
            if value:
                yield GONE[name]
        elif name in RENAMED:
            yield from _rename(args, name, RENAMED[name], value, first)
        elif name == "adafactor":
            yield from _rename(args, name, "optim", "adafactor", first)
        else:
            _FOLDS[name](args, value)
    if given.keys() & {"push_to_hub_model_id", "push_to_hub_organization"}:
        _hub_model(args)


def _rename(args: "TrainingArguments", name: str, target: str, value: Any, first: bool) -> Iterator[str]:
    if first and args.is_set(target) and getattr(args, target) != value:
        yield (
            f"{name} and {target} contradict each other: they are two spellings of one argument, so keep"
            f" {target}."
        )
        return
    setattr(args, target, value)
    if name not in SILENT:
        _warn(name, f"use {target}" if name in RENAMED else f"use {target}={value!r}")


def _warn(name: str, cure: str) -> None:
    warnings.warn(f"The argument {name} is an older spelling: {cure}.", FutureWarning, stacklevel=7)


def _mps(args: "TrainingArguments", value: bool) -> None:
    _warn("use_mps_device", "leave it out, Apple's GPU is used where there is one")


def _legacy_loop(args: "TrainingArguments", value: bool) -> None:
    _warn("use_legacy_prediction_loop", "leave it out, or override Trainer.evaluation_loop")


def _tpu_metrics(args: "TrainingArguments", value: bool) -> None:
    # `debug` is settled before aliases are folded, so it is a list here.
    args.debug = [*args.debug, "tpu_metrics_debug"]  # type: ignore[list-item]
    _warn("tpu_metrics_debug", "use debug='tpu_metrics_debug'")


def _min_num_params(args: "TrainingArguments", value: int) -> None:
    config: Any = args.fsdp_config
    args.fsdp_config = config | {"min_num_params": max(config["min_num_params"], value)}
    _warn("fsdp_min_num_params", "use fsdp_config={'min_num_params': ...}")


def _layer_class(args: "TrainingArguments", value: str) -> None:
    config: Any = args.fsdp_config
    classes = config.get("transformer_layer_cls_to_wrap") or []
    if value not in classes:
        args.fsdp_config = config | {"transformer_layer_cls_to_wrap": [*classes, value]}
    _warn("fsdp_transformer_layer_cls_to_wrap", "use fsdp_config={'transformer_layer_cls_to_wrap': [...]}")


def _hub_model(args: "TrainingArguments") -> None:
    name = args.push_to_hub_model_id or os.path.basename(os.path.normpath(args.output_dir))
    owner = args.push_to_hub_organization
    args.hub_model_id = f"{owner}/{name}" if owner else name
    used = "push_to_hub_model_id" if args.push_to_hub_model_id else "push_to_hub_organization"
    _warn(used, f"use hub_model_id={args.hub_model_id!r}")


_FOLDS: dict[str, Callable[["TrainingArguments", Any], None]] = {
    "use_mps_device": _mps,
    "use_legacy_prediction_loop": _legacy_loop,
    "tpu_metrics_debug": _tpu_metrics,
    "fsdp_min_num_params": _min_num_params,
    "fsdp_transformer_layer_cls_to_wrap": _layer_class,
    "push_to_hub_model_id": lambda args, value: None,  # with the organization, below
    "push_to_hub_organization": lambda args, value: None,
}

ALIASES: tuple[str, ...] = (*RENAMED, "adafactor", *GONE, *_FOLDS)
