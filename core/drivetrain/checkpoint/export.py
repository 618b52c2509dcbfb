"""The weights of a checkpoint for others: a bare safetensors file or folder, or a folder for `from_pretrained`.

Weights are mapped from the checkpoint's files, converted and written one at a time. What is written appears whole or
not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain.checkpoint import files
from drivetrain.checkpoint.manifest import MANIFEST, check, read_manifest, sync_file, sync_folder
from drivetrain.checkpoint.tensors import write_tensors
from drivetrain.checkpoint.weights import (
    INDEX,
    PICKLED,
    PICKLED_INDEX,
    WEIGHTS,
    metadata_of,
    path_inside,
    read_checked_weights,
    split,
    write_weights,
)
from drivetrain.errors import CheckpointError, ConfigurationError, did_you_mean

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BARE, HUGGINGFACE = "safetensors", "huggingface"
FORMATS = (BARE, HUGGINGFACE)
CONFIG = "config.json"

# What of a checkpoint, ours or that of transformers, is there to go on training by.
TRAINING_STATE = re.compile(
    r"manifest\.json|trainer_state\.json|run\.(json|safetensors)"
    r"|(optimizer|scheduler)(-\d+)?\.(json|safetensors|pt|bin)|gradients(-\d+)?\.safetensors|scaler\.pt"
    r"|random-\d+\.(json|safetensors)|rng_state(_\d+)?\.pth|weights\.safetensors"
    r"|global_step\d+/.*|latest|zero_to_fp32\.py",
    re.ASCII,
)
# What else is not copied, since the weights are written anew.
_STATE = re.compile(
    TRAINING_STATE.pattern + r"|training_args\.(json|bin)|model_extra\.(json|safetensors)"
    r"|(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: where, in which format, how many tensors, and the bytes of all files."""

    path: str
    form: str
    tensors: int
    size: int


def export(
    checkpoint: str,
    target: str,
    *,
    dtype: str | None = None,
    form: str | None = None,
    max_shard_size: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes the weights of a checkpoint elsewhere.

    Args:
        checkpoint: a checkpoint, or any folder with weights.
        target: a folder, or for bare weights a file that ends in `.safetensors`.
        dtype: "bf16", "fp16" or "fp32" for floating-point weights; None leaves them. Others keep theirs.
        form: "safetensors" for the weights alone, "huggingface" for config, tokenizer and what else `from_pretrained`
            reads as well; by default the latter where the checkpoint has a config.json.
        max_shard_size: weights above this are written as several files, by default above 5GB.
        overwrite: replace what an export wrote there before.

    Raises:
        ConfigurationError: what is asked for does not fit together, or something is there already.
        CheckpointError: the checkpoint cannot be read, or the target not written.
    """
    names = _names(checkpoint)
    form = _form(checkpoint, names, form, target)
    _check(checkpoint, target, form, dtype, max_shard_size, overwrite)
    weights = read_checked_weights(checkpoint, as_saved=form == HUGGINGFACE)
    chosen = DTYPES[dtype] if dtype is not None else None
    target = os.path.normpath(target)
    for left in files.leftovers(target, "tmp"):
        shutil.rmtree(left, ignore_errors=True)
    made = files.beside(target, "tmp")
    try:
        os.makedirs(made)
        if target.endswith(".safetensors"):
            _write_file(os.path.join(made, WEIGHTS), weights, chosen)
            size = os.path.getsize(os.path.join(made, WEIGHTS))
            os.replace(os.path.join(made, WEIGHTS), target)
            sync_folder(os.path.dirname(os.path.abspath(target)))
        else:
            write_weights(made, weights, max_shard_size or "5GB", chosen)
            if form == HUGGINGFACE:
                _copy(checkpoint, names, made)
                _note_dtype(os.path.join(made, CONFIG), chosen)
            _sync(made)
            size = files.tree_bytes(made)
            files.replace_tree(made, target)
    except OSError as error:
        raise CheckpointError(
            f"{target} was not written ({error.strerror or error}); what was there before is as it was."
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Exported(target, form, len(weights), size)


def _names(checkpoint: str) -> list[str]:
    """The files that may be read: those that the manifest seals, or all regular ones of a folder without one."""
    if os.path.lexists(os.path.join(checkpoint, MANIFEST)):
        try:
            return list(read_manifest(checkpoint))
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"{checkpoint} is not a valid checkpoint: {error}.") from error
    return sorted(name for name in os.listdir(checkpoint) if os.path.isfile(os.path.join(checkpoint, name)))


def _form(checkpoint: str, names: list[str], form: str | None, target: str) -> str:
    if form is not None and form not in FORMATS:
        raise ConfigurationError(
            f"Unknown format '{form}'.{did_you_mean(form, FORMATS)} Choices: {', '.join(FORMATS)}."
        )
    single = target.endswith(".safetensors")
    if form == HUGGINGFACE and single:
        raise ConfigurationError(
            f"The format huggingface is a folder, and {target} is a file: name a folder."
        )
    loadable = CONFIG in names and any(name in names for name in (WEIGHTS, INDEX, PICKLED, PICKLED_INDEX))
    if form == HUGGINGFACE and not loadable:
        what = CONFIG if CONFIG not in names else WEIGHTS
        raise ConfigurationError(
            f"{checkpoint} has no {what}, so that from_pretrained could not read it: choose --format safetensors."
        )
    return form or (HUGGINGFACE if loadable and not single else BARE)


def _check(
    checkpoint: str, target: str, form: str, dtype: str | None, max_shard_size: str | None, overwrite: bool
) -> None:
    problems = []
    if dtype is not None and dtype not in DTYPES:
        problems.append(
            f"Unknown dtype '{dtype}'.{did_you_mean(dtype, DTYPES)} Choices: {', '.join(DTYPES)}."
        )
    if target.endswith(".safetensors") and max_shard_size is not None:
        problems.append(
            f"max_shard_size={max_shard_size!r} cannot be kept in one file, {target}: name a folder."
        )
    here, there = os.path.realpath(checkpoint), os.path.realpath(target)
    if os.path.commonpath([here, there]) in (here, there):
        problems.append(f"{target} and {checkpoint} lie within each other: name a folder elsewhere.")
    elif os.path.lexists(target):
        reason = _why_not_replaced(target, overwrite)
        if reason is not None:
            problems.append(reason)
    if problems:
        raise ConfigurationError(problems)


def _why_not_replaced(target: str, overwrite: bool) -> str | None:
    """Why what stands there may not be replaced. Only what an export could have written ever is."""
    if not os.path.isdir(target) or os.path.islink(target):
        if os.path.isfile(target) and target.endswith(".safetensors"):
            return None if overwrite else f"{target} is there already: overwrite it by --overwrite."
        return f"{target} is there already, and is no export: choose another name."
    inside = os.listdir(target)
    if not inside:
        return None
    if MANIFEST in inside or not any(
        re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name) for name in inside
    ):
        return f"{target} is there already, and holds other things than an export: choose another name."
    return None if overwrite else f"{target} is there already: overwrite it by --overwrite."


def _write_file(path: str, weights: dict[str, Any], dtype: torch.dtype | None) -> None:
    whole, tied, other = split(weights)
    if other:
        raise ConfigurationError(
            f"The model keeps a state that is no tensor ({next(iter(other))!r}), which has no place in one file: name "
            "a folder."
        )
    write_tensors(path, whole, metadata_of(tied), dtype)
    sync_file(path)


def _copy(checkpoint: str, names: list[str], folder: str) -> None:
    """Copies what goes with the weights: config, tokenizer, generation config, code of the model's own."""
    sealed = read_manifest(checkpoint) if MANIFEST in os.listdir(checkpoint) else {}
    for name in names:
        if _STATE.fullmatch(name):
            continue
        if name in sealed:
            reason = check(checkpoint, name, sealed[name])
            if reason is not None:
                raise CheckpointError(f"{checkpoint} is not a valid checkpoint: {reason}.")
        place = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        shutil.copyfile(path_inside(checkpoint, name), place)


def _note_dtype(path: str, dtype: torch.dtype | None) -> None:
    """Has a config name the dtype that the weights have now, also in the configs within it."""
    if dtype is None:
        return
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint's {CONFIG} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"The checkpoint's {CONFIG} is no JSON object.")
    if not {"dtype", "torch_dtype"} & config.keys():
        config["torch_dtype"] = None
    _set_dtype(config, str(dtype).removeprefix("torch."))
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _set_dtype(config: dict[str, Any], name: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = name
        elif key.endswith("_config") and isinstance(value, dict):
            _set_dtype(value, name)


def _sync(folder: str) -> None:
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(os.path.join(inside, name))
        sync_folder(inside)
