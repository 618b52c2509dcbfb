"""Writing a checkpoint: beside its place, sealed, then renamed."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Callable
from typing import Any

import torch

from drivetrain.checkpoint import files
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
    write_json,
    write_packed,
)
from drivetrain.checkpoint.manifest import MANIFEST, FileRecord, seal
from drivetrain.checkpoint.plain import plain
from drivetrain.checkpoint.randomness import RandomState
from drivetrain.checkpoint.spread import join_parts, write_part, write_weights_part
from drivetrain.checkpoint.tensors import nbytes, write_tensors
from drivetrain.checkpoint.weights import holds, write_exact, write_weights
from drivetrain.errors import CheckpointError
from drivetrain.slots import TrainState

logger = logging.getLogger("drivetrain")


def _no_barrier() -> None:
    """One process waits for nobody."""


def save_checkpoint(
    folder: str,
    contents: CheckpointContents,
    *,
    save_model: Callable[[str], Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], Any] = _no_barrier,
    agree: Callable[[bool], bool] | None = None,
) -> None:
    """Writes a checkpoint. A collective: every rank calls it.

    Rank 0 writes everything but the other ranks' random states, which they write themselves, as they do with
    their parts of a state that is spread. What stands at `folder` already is replaced at once when the new one is
    whole.

    Args:
        folder: its place, `.../checkpoint-STEP`.
        contents: what to save. On ranks other than 0 only `random` and a spread `train_state` are looked at.
        save_model: writes weights (and a tokenizer, a configuration, ...) into the folder it is given, and
            may return the records of `write_model`. Weights of `contents.train_state` that it leaves out, or
            changes, are saved beside. Without it they are written as `model.safetensors`. Of a spread state it
            writes all but the weights.
        rank, world_size: of this process.
        barrier: waits for all ranks.
        agree: tells whether all ranks gave True, and waits for them. With it, the failure of one rank is an
            error on all.

    Raises:
        CheckpointError: it could not be written; one sentence. Nothing of it is left, and what stood there
            before still stands.
    """
    folder = os.path.abspath(folder)
    failed = True
    others_failed = False
    try:
        if rank == 0:
            _save_first(folder, contents, save_model, world_size, barrier)
        else:
            _save_other(folder, contents, rank, world_size, barrier)
        failed = False
    finally:
        if agree is not None:
            others_failed = not agree(not failed)
    if others_failed:
        raise CheckpointError(
            f"Checkpoint {os.path.basename(folder)} was not written by another rank, whose message says why."
        )


def _save_first(
    folder: str,
    contents: CheckpointContents,
    save_model: Callable[[str], Any] | None,
    world_size: int,
    barrier: Callable[[], Any],
) -> None:
    waits = [barrier] * (3 if world_size > 1 else 0)  # the others wait as often, whatever happens here
    temporary = files.beside(folder, "tmp")
    state = contents.train_state
    spread = state is not None and state.spread
    needed = 0 if state is None else bytes_needed(state) * (world_size if spread else 1)
    try:
        with files.one_sentence(folder, needed, temporary):
            try:
                for stale in files.leftovers(folder, "tmp"):
                    shutil.rmtree(stale)
                os.makedirs(os.path.dirname(folder), exist_ok=True)
                os.mkdir(temporary)
                _wait(waits)
                records = _write(temporary, contents, save_model, world_size)
            finally:
                while (
                    len(waits) > 1
                ):  # whatever happened, the others must be done before the folder is touched
                    _wait(waits)
            missing = [r for r in range(world_size) if not os.path.exists(_random_path(temporary, r))]
            if missing:
                logger.warning(
                    "The random state of rank(s) %s is not in %s, since they do not see this folder.",
                    ", ".join(map(str, missing)),
                    os.path.basename(folder),
                )
            if spread:
                records |= join_parts(temporary, world_size)
            seal(temporary, records)
            files.replace_tree(temporary, folder)
    finally:
        while waits:
            _wait(waits)


def _save_other(
    folder: str, contents: CheckpointContents, rank: int, world_size: int, barrier: Callable[[], Any]
) -> None:
    waits = [barrier] * 3
    shared = False
    try:
        _wait(waits)
        found = files.leftovers(folder, "tmp")
        shared = bool(found)
        if shared:
            try:
                _write_random(found[0], contents, rank)
                if contents.train_state is not None and contents.train_state.spread:
                    write_part(found[0], contents.train_state, rank, world_size)
            except OSError as error:
                raise CheckpointError(files.failure(folder, 0, error)) from error
    finally:
        while waits:
            _wait(waits)
    if shared and (files.leftovers(folder, "tmp") or not os.path.exists(os.path.join(folder, MANIFEST))):
        raise CheckpointError(
            f"Checkpoint {os.path.basename(folder)} was not written by rank 0, whose message says why."
        )


def _wait(waits: list[Callable[[], Any]]) -> None:
    if waits:
        waits.pop()()


def _write(
    folder: str, contents: CheckpointContents, save_model: Callable[[str], Any] | None, world_size: int
) -> dict[str, FileRecord]:
    state = contents.train_state
    records = _write_weights(folder, state, save_model, world_size)
    if state is not None:
        records |= write_train_state(folder, state)
    if contents.scheduler is not None:
        records |= write_packed(
            folder, SCHEDULER, {"state": (contents.scheduler, "", "the scheduler's state")}
        )
    records |= _write_random(folder, contents, 0)
    text = contents.trainer_state
    if not isinstance(text, str):
        text = (
            json.dumps(text, indent=2, sort_keys=True) + "\n"
        )  # NaN as it is, as the documented file has it
    with open(os.path.join(folder, TRAINER_STATE), "w", encoding="utf-8") as file:
        file.write(text)
    write_json(folder, TRAINING_ARGS, plain(contents.args), indent=2)
    return records | _write_run(folder, contents, world_size)


def _write_weights(
    folder: str, state: TrainState | None, save_model: Callable[[str], Any] | None, world_size: int
) -> dict[str, FileRecord]:
    if state is not None and state.spread:
        if save_model is not None:
            save_model(folder)
        return write_weights_part(folder, state, 0, world_size)
    if save_model is None:
        return write_weights(folder, state.weights) if state is not None else {}
    made = save_model(folder)
    records: dict[str, FileRecord] = dict(made) if isinstance(made, dict) else {}
    if state is not None and not holds(folder, state.weights):
        logger.info(
            "What save_model wrote is not the whole state of the model; %s has that beside it.",
            os.path.basename(folder),
        )
        records |= write_exact(folder, state.weights)
    return records


def write_train_state(folder: str, state: TrainState) -> dict[str, FileRecord]:
    """Writes optimizer, loss scale and gradients of a canonical state; the weights are written elsewhere."""
    records = write_packed(
        folder,
        OPTIMIZER,
        {
            "state": (state.optimizer, "", "the optimizer's state"),
            "groups": (state.groups, "%groups/", "the optimizer's groups"),
            "extra": (state.optimizer_extra, "%extra/", "the optimizer's state_dict"),
            "loss_scale": (state.loss_scale, "%loss_scale/", "the loss scaler's state"),
        },
    )
    if state.gradients:
        records[GRADIENTS] = write_tensors(os.path.join(folder, GRADIENTS), state.gradients)
    return records


def _write_random(folder: str, contents: CheckpointContents, rank: int) -> dict[str, FileRecord]:
    random = contents.random if contents.random is not None else RandomState.capture()
    stem = RANDOM.format(rank=rank)
    return write_packed(folder, stem, {"state": (random.as_dict(), "", "the random state")})


def _random_path(folder: str, rank: int) -> str:
    return os.path.join(folder, RANDOM.format(rank=rank) + ".json")


def _write_run(folder: str, contents: CheckpointContents, world_size: int) -> dict[str, FileRecord]:
    from drivetrain import __version__

    versions = {
        "drivetrain": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    parts: dict[str, Any] = {
        "format": FORMAT,
        "step": contents.steps_done(),
        "world_size": world_size,
        "versions": versions,
        "plugins": plain(contents.plugins),
        "configuration": plain(contents.configuration),
    }
    states = ("position", "loss", "plugin_states", "callback_states", "extra")
    return write_packed(
        folder,
        RUN,
        {key: (value, f"%{key}/", key) for key, value in parts.items()}
        | {name: (getattr(contents, name), f"{name}/", name) for name in states},
    )


def bytes_needed(state: TrainState) -> int:
    """About how many bytes a checkpoint of this state takes."""
    total = nbytes({k: v for k, v in state.weights.items() if isinstance(v, torch.Tensor)}) + nbytes(
        state.gradients
    )
    for entry in state.optimizer.values():
        total += nbytes({key: value for key, value in entry.items() if isinstance(value, torch.Tensor)})
    return total
