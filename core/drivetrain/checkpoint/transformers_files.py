"""A checkpoint that the Trainer of transformers 4.34.0 wrote: how it is told from others, and what is read of it.

    model.safetensors or pytorch_model.bin   or shards of either, with their index
    optimizer.pt          the optimizer's state_dict, which numbers the parameters in the order of its groups
    scheduler.pt          the scheduler's state_dict
    scaler.pt             the loss scaler's, where the Trainer itself scaled
    rng_state.pth         the random generators; rng_state_RANK.pth of several processes
    trainer_state.json    the documented state
    training_args.bin     the arguments, pickled as objects of transformers: never opened

It has no seal, so a folder that was not finished is found out only by reading it. Nothing in it is executed.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain.checkpoint.manifest import MANIFEST
from drivetrain.checkpoint.randomness import RandomState
from drivetrain.checkpoint.tensors import read_header, unreadable
from drivetrain.checkpoint.transformers_optimizer import by_name
from drivetrain.checkpoint.transformers_pickles import read_pickle
from drivetrain.checkpoint.weights import read_weights, weight_files, with_tied
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState

TRAINER_STATE = "trainer_state.json"
OPTIMIZER, SCHEDULER, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
_RANDOM = re.compile(r"rng_state(?:_(\d+))?\.pth", re.ASCII)
_MARKS = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.pt|training_args\.bin|rng_state(_\d+)?\.pth|global_step\d+|"
    r"(pytorch_model|optimizer)_\d+",
    re.ASCII,
)
_OURS = re.compile(
    rf"{re.escape(MANIFEST)}|(run|optimizer|scheduler|training_args|random-\d+)\.json", re.ASCII
)
_OF_ENGINES = (
    (re.compile(r"global_step\d+"), "DeepSpeed"),
    (re.compile(r"(pytorch_model|optimizer)_\d+|pytorch_model_rank\d+\.bin|optimizer\.bin"), "FSDP"),
    (re.compile(r"optimizer\.pt_.*|user_content\.pt"), "SageMaker"),
)


@dataclass(slots=True)
class TransformersCheckpoint:
    """What is read of a checkpoint.

    Attributes:
        train_state: weights and optimizer by name, and the loss scale where it is there.
        scheduler: the scheduler's `state_dict()`, as it was written.
        state: the content of `trainer_state.json`.
        random: the random generators of this rank; None where none are there for it.
        world_size: processes that wrote it; None where it has no random states to tell by.
        version: of transformers, where the model's config says it.
    """

    train_state: TrainState
    scheduler: dict[str, Any]
    state: dict[str, Any]
    random: RandomState | None
    world_size: int | None
    version: str | None


def written_by_transformers(folder: str) -> bool:
    """Whether a folder is a checkpoint of transformers, whole or not.

    One of drivetrain that has lost its manifest is none: it has files of its own.
    """
    names = _names(folder)
    if TRAINER_STATE not in names and not any(
        kind.fullmatch(name) for kind, _ in _OF_ENGINES for name in names
    ):
        return False
    return any(map(_MARKS.fullmatch, names)) and not any(map(_OURS.fullmatch, names))


def problem_of(folder: str) -> str | None:
    """Why a run cannot go on from a checkpoint of transformers, or None. Tensors are not read."""
    try:
        _check_files(folder)
        for path in weight_files(folder):
            if path.endswith(".safetensors"):
                read_header(path)
            else:
                read_pickle(path)
        read_trainer_state(folder)
        read_pickle(os.path.join(folder, OPTIMIZER))
        read_pickle(os.path.join(folder, SCHEDULER))
    except CheckpointError as error:
        return str(error).rstrip(".")
    return None


def read_transformers(
    folder: str, names: list[list[str]], model: torch.nn.Module, rank: int, world_size: int
) -> TransformersCheckpoint:
    """Reads a checkpoint of transformers.

    Args:
        folder: the checkpoint.
        names: the names of the parameters of each group of the optimizer, in their order.
        model: the bare model; names that are tied in it are completed.
        rank, world_size: of this process. With another number of processes than wrote it, rank 0 alone has a
            random state.

    Raises:
        CheckpointError: it is not whole, not of this model and optimizer, or holds what only running code would
            give back; one sentence.
    """
    _check_files(folder)
    weights = with_tied(model.state_dict(), read_weights(folder))
    path = os.path.join(folder, OPTIMIZER)
    train_state = by_name(read_pickle(path), names, weights, path)
    if os.path.exists(os.path.join(folder, SCALER)):
        train_state.loss_scale = _mapping(os.path.join(folder, SCALER))
    ranks = {int(match[1] or 0): name for name in _names(folder) if (match := _RANDOM.fullmatch(name))}
    world = max(ranks) + 1 if ranks else None
    own = ranks.get(rank) if rank == 0 or world == world_size else None
    return TransformersCheckpoint(
        train_state=train_state,
        scheduler=_mapping(os.path.join(folder, SCHEDULER)),
        state=read_trainer_state(folder),
        random=_random(os.path.join(folder, own)) if own is not None else None,
        world_size=world,
        version=_version(folder),
    )


def _check_files(folder: str) -> None:
    names = _names(folder)
    for kind, engine in _OF_ENGINES:
        found = next((name for name in sorted(names) if kind.fullmatch(name)), None)
        if found is not None:
            raise CheckpointError(
                f"{folder} was written by transformers under {engine} ({found}), whose state of the optimizer is not "
                "read here: make weights of it by the engine's own tools, load them by from_pretrained, and start a "
                "new run."
            )
    for needed in (TRAINER_STATE, OPTIMIZER, SCHEDULER):
        if needed not in names:
            raise CheckpointError(
                f"{folder} was written by transformers and has no {needed}, without which the run cannot go on as it "
                "was: resume from another checkpoint, or load its weights by from_pretrained and start a new run."
            )


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _mapping(path: str) -> dict[str, Any]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f"The file {path} does not hold a state by name; resume from another checkpoint."
        )
    return content


def read_trainer_state(folder: str) -> dict[str, Any]:
    """The documented state that a checkpoint of transformers holds.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = os.path.join(folder, TRAINER_STATE)
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        if not isinstance(values, dict) or type(values.get("global_step")) is not int:
            raise ValueError("it is not the state of a run")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(unreadable(path, error)) from error
    return values


def _random(path: str) -> RandomState:
    saved = _mapping(path)
    try:
        kind, key, position, has_gauss, gauss = saved["numpy"]
        cuda = saved.get("cuda", [])
        return RandomState.from_dict(
            {
                "python": saved["python"],
                "numpy": {
                    "bit_generator": kind,
                    "state": {"key": key, "pos": position},
                    "has_gauss": has_gauss,
                    "gauss": gauss,
                },
                "torch": saved["cpu"],
                # One process keeps the state of its device, one of several that of each device of the machine.
                "devices": {"cuda": [cuda] if isinstance(cuda, torch.Tensor) else list(cuda)}
                if len(cuda)
                else {},
                "seed": None,
            }
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The file {path} does not hold a random state; resume from another checkpoint."
        ) from error


def _version(folder: str) -> str | None:
    """What the config of a model of transformers says; of another model nobody knows."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            told = json.load(file)["transformers_version"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return told[:20] if isinstance(told, str) else None
