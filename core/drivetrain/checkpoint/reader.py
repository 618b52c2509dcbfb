"""Reading a checkpoint back."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from drivetrain.checkpoint.contents import (
    FORMAT,
    GRADIENTS,
    OPTIMIZER,
    RANDOM,
    RUN,
    SCHEDULER,
    TRAINER_STATE,
    TRAINING_ARGS,
    CheckpointContents,
)
from drivetrain.checkpoint.manifest import FileRecord, read_manifest, validate
from drivetrain.checkpoint.randomness import RandomState
from drivetrain.checkpoint.serialize import Unpacker
from drivetrain.checkpoint.spread import gradients_name, optimizer_stem, ranks_of
from drivetrain.checkpoint.tensors import read_tensors, unreadable
from drivetrain.checkpoint.weights import read_weights, with_tied
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState

logger = logging.getLogger("drivetrain")

LARGEST = 2**53
"""No count in a checkpoint reaches this: what does is no count."""

_RUN: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "step": int,
    "world_size": int,
    "versions": dict,
    "plugins": dict,
    "configuration": dict,
    "position": (dict, type(None)),
    "loss": dict,
    "plugin_states": dict,
    "callback_states": dict,
    "extra": dict,
}


def load_checkpoint(
    folder: str,
    rank: int = 0,
    world_size: int = 1,
    *,
    model: torch.nn.Module | None = None,
    verify: bool = True,
) -> CheckpointContents:
    """Reads a checkpoint. Nothing in it is unpickled or executed, and no link in it is followed.

    Args:
        folder: a checkpoint.
        rank, world_size: of this process. At another world size than the one that saved, rank 0 keeps its random
            state, which the order of rows is drawn from; that of the others is derived from (seed, step, rank),
            and a line of log says so.
        model: the bare model that the weights are for; names that are tied in it are completed.
        verify: compare the checksums first; not needed where `last_checkpoint` has just done so.

    Raises:
        CheckpointError: it is not whole, or a file in it cannot be read; one sentence.
    """
    reason = validate(folder, quick=not verify)
    if reason is not None:
        raise CheckpointError(f"{folder} is not a valid checkpoint: {reason}.")
    source = _Folder(folder)
    run = _checked(source.packed(RUN, _RUN), folder)
    contents = CheckpointContents(
        train_state=_train_state(source, model),
        scheduler=source.packed(SCHEDULER, ("state",)).get("state")
        if source.has(SCHEDULER + ".json")
        else None,
        trainer_state=source.tree(TRAINER_STATE),
        args=source.tree(TRAINING_ARGS),
        **{key: value for key, value in run.items() if key != "format"},
    )
    contents.random = _random(source, contents, rank, world_size)
    return contents


def read_run(folder: str) -> dict[str, Any]:
    """What a checkpoint says of its run: step, world size, plugins, configuration, position, states.

    Checksums are not compared.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    reason = validate(folder, quick=True)
    if reason is not None:
        raise CheckpointError(f"{folder} is not a valid checkpoint: {reason}.")
    return _checked(_Folder(folder).packed(RUN, _RUN), folder)


class _Folder:
    """The files that the manifest of a checkpoint names; others in its folder are not looked at."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: Mapping[str, FileRecord] = read_manifest(folder)

    def has(self, name: str) -> bool:
        return name in self.files

    def path(self, name: str) -> str:
        path = os.path.join(self.folder, name)
        if name not in self.files:
            raise CheckpointError(f"The file {path} is missing; resume from an earlier checkpoint.")
        return path

    def tree(self, name: str) -> Any:
        path = self.path(name)
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(unreadable(path, error)) from error
        if not isinstance(content, dict):
            raise CheckpointError(unreadable(path, ValueError("it is not a JSON object")))
        return content

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return read_tensors(self.path(name)) if self.has(name) else {}

    def packed(self, stem: str, keys: Iterable[str]) -> dict[str, Any]:
        tree = self.tree(stem + ".json")
        tensors = self.tensors(stem + ".safetensors")
        missing = [key for key in keys if key not in tree]
        if missing:
            raise CheckpointError(
                f"The file {os.path.join(self.folder, stem)}.json lacks {missing[0]!r}; "
                "resume from an earlier checkpoint."
            )
        unpacker = Unpacker(tensors)
        return {key: unpacker.unpack(tree[key], f"{stem} ({key})") for key in keys}


def _checked(run: dict[str, Any], folder: str) -> dict[str, Any]:
    for key, kind in _RUN.items():
        number = kind is int and not (type(run[key]) is int and 0 <= run[key] < LARGEST)
        keyed = isinstance(run[key], dict) and not _named(run[key])
        if number or keyed or not isinstance(run[key], kind):
            raise CheckpointError(
                f"The file {folder}/{RUN}.json holds no {key!r} that can be used; "
                "resume from an earlier checkpoint."
            )
    if run["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {run['format']}, and this version reads {FORMAT}; "
            "install the drivetrain that wrote it."
        )
    return run


def _train_state(source: _Folder, model: torch.nn.Module | None) -> TrainState | None:
    if not source.has(OPTIMIZER + ".json"):
        return None
    weights = read_weights(source.folder, source.files)
    if model is not None:
        weights = with_tied(model.state_dict(), weights)
    parts = source.packed(OPTIMIZER, ("state", "groups", "extra", "loss_scale"))
    gradients = source.tensors(GRADIENTS)
    for rank in ranks_of(source.files):
        of_rank = source.packed(optimizer_stem(rank), ("state",))["state"]
        if not isinstance(of_rank, dict) or not isinstance(parts["state"], dict):
            raise CheckpointError(
                f"The file {source.folder}/{optimizer_stem(rank)}.json does not hold an optimizer's state; "
                "resume from an earlier checkpoint."
            )
        parts["state"].update(of_rank)
        gradients.update(source.tensors(gradients_name(rank)))
    for name, gradient in gradients.items():
        weight = weights.get(name)
        if weight is not None and gradient.shape != weight.shape:
            raise CheckpointError(
                f"The checkpoint's gradient of {name!r} has shape {tuple(gradient.shape)} and its weight "
                f"{tuple(weight.shape)}; resume from an earlier checkpoint."
            )
    state = TrainState(
        weights, parts["state"], parts["groups"], gradients, parts["loss_scale"], parts["extra"]
    )
    _check_state(state, source.folder)
    return state


def _check_state(state: TrainState, folder: str) -> None:
    whole = isinstance(state.optimizer, dict) and all(
        isinstance(entry, dict) for entry in state.optimizer.values()
    )
    whole = whole and _named(state.optimizer) and _named(state.optimizer_extra)
    whole = whole and isinstance(state.groups, list) and isinstance(state.loss_scale, (dict, type(None)))
    if not whole or not all(
        _named(group)
        and isinstance(group.get("params"), list)
        and all(isinstance(name, str) for name in group["params"])
        for group in state.groups
    ):
        raise CheckpointError(
            f"The file {folder}/{OPTIMIZER}.json does not hold an optimizer's state; "
            "resume from an earlier checkpoint."
        )


def _named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _random(source: _Folder, contents: CheckpointContents, rank: int, world_size: int) -> RandomState:
    told = contents.args.get("seed")
    seed, step = told if type(told) is int else 0, contents.step or 0
    same = world_size == contents.world_size
    # Rank 0 draws the order of rows, which must not change with the number of processes.
    own = [r for r in range(world_size) if (same or r == 0) and source.has(RANDOM.format(rank=r) + ".json")]
    if rank == 0 and len(own) < world_size:
        why = (
            "it has no random state of some ranks"
            if same
            else f"{contents.world_size} process(es) saved it and {world_size} resume it"
        )
        whom = "rank r > 0" if own else "rank r"
        logger.warning(
            "%s: %s, so %s draws from a seed of (%d, %d, r).", source.folder, why, whom, seed, step
        )
    if rank in own:
        stem = RANDOM.format(rank=rank)
        fields = source.packed(stem, ("state",))["state"]
        if not _named(fields):
            raise CheckpointError(
                f"The file {source.folder}/{stem}.json does not hold a random state; "
                "resume from an earlier checkpoint."
            )
        return RandomState.from_dict(fields)
    return RandomState.derived(seed, step, rank)
