"""What a checkpoint says of a run is looked at before anything is set from it.

A checkpoint may come from anywhere, and its manifest says nothing of who wrote it. What can be of other types or
without bounds would fail in the middle of the run, or set what is not for a checkpoint to set.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from drivetrain.callbacks.state import TrainerState
from drivetrain.checkpoint.manifest import validate
from drivetrain.checkpoint.reader import LARGEST
from drivetrain.checkpoint.rehearsal import rehearse_schedule
from drivetrain.checkpoint.tensors import reason_of
from drivetrain.errors import CheckpointError, DrivetrainError
from drivetrain.slots import LRScheduler

logger = logging.getLogger("drivetrain")


@contextmanager
def taken_from_checkpoint(what: str) -> Iterator[None]:
    """Whatever a part of a checkpoint provokes in what it is given to is one sentence, the cause chained.

    Args:
        what: that part, as the sentence's subject.

    Raises:
        CheckpointError: for every exception but our own, and that memory ran out.
    """
    from drivetrain.memory import is_out_of_memory

    try:
        yield
    except DrivetrainError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{what} of the checkpoint cannot be gone on from ({type(error).__name__}: {reason_of(error)}); "
            "resume from an earlier checkpoint."
        ) from error


def is_count(value: Any) -> bool:
    """Whether a value is a number of things: whole, not negative, of a size that things can have."""
    return type(value) is int and 0 <= value < LARGEST


def is_number(value: Any) -> bool:
    """Whether a value is a float, or an integer that can become one exactly."""
    return type(value) is float or (type(value) is int and -LARGEST < value < LARGEST)


def alike(live: Any, saved: Any) -> bool:
    """Whether a saved value may stand where a live one stands: of the same type, and so on within.

    Numbers may be whole or not. What is None, or empty, now may have been a number or a string then. An object's
    attributes (a dictionary by strings) may be fewer, and never others.
    """
    if isinstance(live, bool):
        return isinstance(saved, bool)
    if isinstance(live, int):
        return is_number(saved) and math.isfinite(saved)
    if isinstance(live, float):
        return is_number(saved)
    if live is None:
        return saved is None or isinstance(saved, (bool, str)) or is_number(saved)
    if isinstance(live, torch.Tensor):
        return isinstance(saved, torch.Tensor) and saved.shape == live.shape and saved.dtype == live.dtype
    if isinstance(live, (list, tuple)):
        if not isinstance(saved, (list, tuple)):
            return False
        return not live or all(alike(live[min(i, len(live) - 1)], item) for i, item in enumerate(saved))
    if isinstance(live, Mapping):
        if not isinstance(saved, Mapping):
            return False
        if live and all(isinstance(key, str) for key in live):
            return all(key in live and alike(live[key], value) for key, value in saved.items())
        key, value = next(iter(live.items()), (None, None))
        return not live or all(alike(key, k) and alike(value, v) for k, v in saved.items())
    return type(saved) is type(live)


def check_scheduler(scheduler: Any, saved: Any) -> None:
    """Whether a scheduler's state has what this scheduler keeps, and nothing in the place of its methods.

    torch's schedulers take every key for an attribute of theirs.

    Raises:
        CheckpointError: it has not.
    """
    if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
        raise _wrong("scheduler.json", "a scheduler's state")
    live = scheduler.state_dict()
    if not isinstance(live, dict):
        return
    for key, value in saved.items():
        # A key that nothing has is of another version of torch, and nothing reads it.
        if not alike(live[key], value) if key in live else hasattr(scheduler, key):
            raise CheckpointError(
                f"The checkpoint's scheduler state has {key[:50]!r} as {type(scheduler).__name__} has not; resume "
                "with the scheduler that its run.json names, or from an earlier checkpoint."
            )


def restore_scheduler(
    scheduler: LRScheduler, saved: dict[str, Any], run_is_over: bool, per_evaluation: bool
) -> None:
    """Gives a scheduler a state that `check_scheduler` has passed, after a step was tried on a copy.

    Args:
        scheduler: of the run.
        saved: the state.
        run_is_over: one that is done has no step left, so none is tried.
        per_evaluation: its step takes a metric.

    Raises:
        CheckpointError: it cannot go on from it.
    """
    if not run_is_over:
        rehearse_schedule(scheduler, saved, per_evaluation)
    with taken_from_checkpoint("The scheduler's state"):
        scheduler.load_state_dict(saved)


def take_over(state: TrainerState, saved: TrainerState) -> None:
    """Sets what a run takes over of a state that was checked."""
    for name in ("epoch", "global_step", "total_flos", "log_history", "best_metric", "best_model_checkpoint"):
        setattr(state, name, getattr(saved, name))


def checked_state(values: Mapping[str, Any], folder: str) -> TrainerState:
    """The part of `trainer_state.json` that a run takes over.

    Args:
        values: the file's content.
        folder: the checkpoint.

    Raises:
        CheckpointError: a field is not what it should be.
    """
    state = TrainerState()
    fields: dict[str, Callable[[Any], bool]] = {
        "epoch": lambda v: v is None or (is_number(v) and math.isfinite(v) and v >= 0),
        "global_step": is_count,
        "total_flos": lambda v: (type(v) is int and 0 <= v < 2**127) or (type(v) is float and v >= 0),
        "log_history": lambda v: isinstance(v, list) and all(map(_is_row, v)),
        "best_metric": lambda v: v is None or is_number(v),
        "best_model_checkpoint": lambda v: v is None or (isinstance(v, str) and "\0" not in v),
    }
    for name, fits in fields.items():
        value = values.get(name, getattr(state, name))
        if not fits(value):
            raise _wrong("trainer_state.json", f"{name!r}")
        setattr(state, name, value)
    state.best_model_checkpoint = best_to_follow(state.best_model_checkpoint, folder)
    return state


def _is_row(row: Any) -> bool:
    """Whether a row of the log has its step, and numbers as numbers where they are formatted."""
    return isinstance(row, dict) and is_count(row.get("step", 0)) and is_number(row.get("epoch", 0.0))


def best_to_follow(best: str | None, folder: str) -> str | None:
    """The best checkpoint that a checkpoint names, where it may be followed.

    One in the same place is. One elsewhere (of the run that this one went on from) must be a whole checkpoint, and is
    then said: its weights may be loaded at the end. It is never deleted: only what stands in the run's own folder is.
    """
    if best is None:
        return None
    name, place = os.path.basename(best), os.path.realpath(os.path.dirname(best))
    if not re.fullmatch(r"checkpoint-\d+", name, re.ASCII):
        why: str | None = "it is not named as a checkpoint"
    elif os.path.islink(best):
        why = "it is a link"
    elif place == os.path.dirname(os.path.realpath(folder)):
        return best
    else:
        why = validate(best)
    if why is not None:
        logger.warning("%s names %r as the best checkpoint, which is not followed: %s.", folder, best, why)
        return None
    logger.warning("%s names as the best a checkpoint of another folder: %s.", folder, best)
    return best


def check_position(position: Any) -> dict[str, Any]:
    """The position of a run, with numbers where they belong; the data's own is looked at where it is read.

    Raises:
        CheckpointError: it is not one.
    """
    fits = isinstance(position, dict)
    fits = fits and all(is_count(position.get(name)) for name in ("epoch", "batch", "micro_batches"))
    fits = fits and isinstance(position.get("epoch_ended"), bool) and "data" in position
    fits = fits and isinstance(position.get("epoch_stop", False), bool)
    if not fits or not isinstance(position["data"], (dict, type(None))):
        raise _wrong("run.json", "a position")
    return dict(position)


def check_loss(loss: Any) -> dict[str, Any]:
    """The window of losses.

    Raises:
        CheckpointError: it is not one.
    """
    sums = loss.get("sum") if isinstance(loss, dict) else None  # of each rank
    fits = is_number(sums) or (
        isinstance(sums, torch.Tensor) and sums.dim() <= 1 and sums.numel() > 0 and sums.is_floating_point()
    )
    if not fits or not is_number(loss.get("total")) or not is_count(loss.get("last_logged")):
        raise _wrong("run.json", "a window of losses")
    return dict(loss)


def _wrong(file: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint's {file} does not hold {what} that can be used; resume from an earlier checkpoint."
    )
