"""Writing a checkpoint: beside its place, sealed, then renamed."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from drivetrain.checkpoint.manifest import FileRecord, seal
from drivetrain.checkpoint.plain import plain
from drivetrain.checkpoint.randomness import RandomState
from drivetrain.checkpoint.spread import join_parts, write_part, write_weights_part
from drivetrain.checkpoint.tensors import nbytes, write_tensors
from drivetrain.checkpoint.together import Exchange, alike
from drivetrain.checkpoint.weights import holds, read_weights, write_exact, write_weights
from drivetrain.errors import CheckpointError
from drivetrain.secret import has_secret, without_secrets
from drivetrain.slots import TrainState

logger = logging.getLogger("drivetrain")


def save_checkpoint(
    folder: str,
    contents: CheckpointContents,
    *,
    save_model: Callable[[str], Any] | None = None,
    meanwhile: bool = False,
) -> None:
    """Writes a checkpoint. One process does so, however many there are: the state is whole, and so are `contents`.

    What stands at `folder` already is replaced at once when the new one is whole.

    Args:
        folder: its place, `.../checkpoint-STEP`.
        contents: what to save.
        save_model: writes weights (and a tokenizer, a configuration, ...) into the folder it is given, and
            may return the records of `write_model`. Weights of `contents.train_state` that it leaves out, or
            changes, are saved beside. Without it they are written as `model.safetensors`.
        meanwhile: whether the model is trained while this goes on, so that what `save_model` wrote may be of another
            step: it is compared.

    Raises:
        CheckpointError: it could not be written; one sentence. Nothing of it is left, and what stood there
            before still stands.
    """
    folder = os.path.abspath(folder)
    temporary = files.beside(folder, "tmp")
    state = contents.train_state
    with files.one_sentence(folder, 0 if state is None else bytes_needed(state), temporary):
        _make(temporary, folder)
        records = _write_weights(temporary, os.path.basename(folder), state, save_model, meanwhile)
        seal(temporary, records | _write(temporary, contents))
        files.replace_tree(temporary, folder)


def save_spread(
    folder: str,
    contents: CheckpointContents,
    *,
    rank: int,
    exchange: Exchange,
    save_model: Callable[[str], Any] | None = None,
) -> None:
    """Writes a checkpoint of a state that is spread over the ranks. A collective: every rank writes its part.

    Args:
        folder: its place, `.../checkpoint-STEP`.
        contents: what to save; on ranks other than 0 the part of `train_state` alone.
        rank: of this process.
        exchange: among the ranks.
        save_model: writes all but the weights into the folder it is given; rank 0's is called.

    Raises:
        CheckpointError: it could not be written, on whichever rank; on all of them. Nothing of it is left.
        ProcessError: the same, where another rank failed for another reason than the disk, or has ended.
    """
    folder = os.path.abspath(folder)
    temporary = files.beside(folder, "tmp") if rank == 0 else ""
    state = contents.train_state
    assert state is not None
    try:
        with alike(exchange, (temporary, bytes_needed(state))) as said, _in_a_sentence(folder, 0, temporary):
            if rank == 0:
                _make(temporary, folder)
        shared, world_size = said[0][0], len(said)
        needed = sum(of_rank for _, of_rank in said)
        records: dict[str, FileRecord] = {}
        with alike(exchange), _in_a_sentence(folder, needed, shared):
            if rank == 0:
                if save_model is not None:
                    save_model(shared)
                records = write_weights_part(shared, state, 0, world_size) | _write(shared, contents)
            elif os.path.isdir(shared):
                write_part(shared, state, rank, world_size)
            else:
                raise CheckpointError(
                    f"Checkpoint {os.path.basename(folder)} was not written, because this rank does not see the "
                    f"{os.path.dirname(folder)} of rank 0, which a sharded state needs; choose a folder that all see."
                )
        with alike(exchange), _in_a_sentence(folder, needed, shared):
            if rank == 0:
                seal(shared, records | join_parts(shared, world_size))
                files.replace_tree(shared, folder)
    finally:
        if rank == 0:  # nobody writes there any more
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _in_a_sentence(folder: str, needed: int, temporary: str) -> Iterator[None]:
    """Says what was wrong in one sentence, and leaves what has been written where it is: others may still write."""
    try:
        yield
    except OSError as error:
        there = files.tree_bytes(temporary)
        raise CheckpointError(files.failure(folder, max(needed, there), error, there)) from error


def _make(temporary: str, folder: str) -> None:
    for stale in files.leftovers(folder, "tmp"):
        shutil.rmtree(stale)
    files.make_folder(os.path.dirname(folder))
    os.mkdir(temporary)


def _write(folder: str, contents: CheckpointContents) -> dict[str, FileRecord]:
    """Writes all but the weights."""
    state = contents.train_state
    records = write_train_state(folder, state) if state is not None else {}
    if contents.scheduler is not None:
        records |= write_packed(
            folder, SCHEDULER, {"state": (contents.scheduler, "", "the scheduler's state")}
        )
    own = contents.random if contents.random is not None else RandomState.capture()
    for rank, random in enumerate((own, *contents.others)):
        stem = RANDOM.format(rank=rank)
        records |= write_packed(folder, stem, {"state": (random.as_dict(), "", "the random state")})
    text = contents.trainer_state
    if not isinstance(text, str):
        text = (
            json.dumps(text, indent=2, sort_keys=True) + "\n"
        )  # NaN as it is, as the documented file has it
    if has_secret(text):
        text = json.dumps(without_secrets(json.loads(text)), indent=2, sort_keys=True) + "\n"
    with open(os.path.join(folder, TRAINER_STATE), "w", encoding="utf-8") as file:
        file.write(text)
    write_json(folder, TRAINING_ARGS, plain(contents.args), indent=2)
    return records | _write_run(folder, contents)


def _write_weights(
    folder: str,
    name: str,
    state: TrainState | None,
    save_model: Callable[[str], Any] | None,
    meanwhile: bool,
) -> dict[str, FileRecord]:
    if save_model is None:
        return write_weights(folder, state.weights) if state is not None else {}
    made = save_model(folder)
    records: dict[str, FileRecord] = dict(made) if isinstance(made, dict) else {}
    if state is not None and not holds(folder, state.weights):
        logger.info(
            "What save_model wrote is not the whole state of the model; %s has that beside it.",
            name,
        )
        records |= write_exact(folder, state.weights)
    elif state is not None and meanwhile and not records and not _are(folder, state.weights):
        logger.warning(
            "What save_model wrote into %s are not the weights of its step, since training went on; it has those too, "
            "as weights.safetensors. Write the state_dict that _save is given.",
            name,
        )
        records |= write_exact(folder, state.weights)
    return records


def _are(folder: str, weights: Mapping[str, Any]) -> bool:
    """Whether the weights in a folder are these, bit for bit; it is known that they have their names and shapes."""
    written = read_weights(folder)
    return all(
        torch.equal(_bytes(written[name]), _bytes(tensor))
        for name, tensor in weights.items()
        if name in written and isinstance(tensor, torch.Tensor)
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


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


def _write_run(folder: str, contents: CheckpointContents) -> dict[str, FileRecord]:
    from drivetrain import __version__

    versions = {
        "drivetrain": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    parts: dict[str, Any] = {
        "format": FORMAT,
        "step": contents.steps_done(),
        "world_size": 1 + len(contents.others),
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
