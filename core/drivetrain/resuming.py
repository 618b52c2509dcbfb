"""Going on from a checkpoint: which one, and how a run is put back to where it was written."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

from drivetrain.changes import what_changed
from drivetrain.checkpoint import (
    load_checkpoint,
    read_checked_weights,
    read_run,
    sweep,
    written_by_transformers,
)
from drivetrain.checkpoint.transformers_optimizer import group_names
from drivetrain.common_checkpoint import last_in_common, named
from drivetrain.data.trusting import checked
from drivetrain.elastic import micro_batches, saved_layout
from drivetrain.errors import CheckpointError, did_you_mean
from drivetrain.listener_states import restore_callback_states, restore_plugin_states
from drivetrain.loop import Position
from drivetrain.resume_checks import check_changes
from drivetrain.resuming_transformers import restore_from_transformers
from drivetrain.saving import PREFIX, run_folder
from drivetrain.slots import OptimizerFactory, TrainState
from drivetrain.trust import (
    check_loss,
    check_position,
    check_scheduler,
    checked_state,
    restore_scheduler,
    take_over,
    taken_from_checkpoint,
)

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


def clean_up(trainer: Trainer) -> None:
    """Removes what a run that was killed left half-written in this run's folder."""
    if trainer.run.keeps_state:
        sweep(run_folder(trainer))


def note_others(trainer: Trainer, checkpoint: str | None) -> None:
    """Remembers which checkpoints stand there from other runs, so that replacing one can be said."""
    if trainer._others is None:  # after a restart with a smaller batch they may be this run's own
        folder = run_folder(trainer)
        own = checkpoint is not None and os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(
            folder
        )
        meant = own or trainer.args.overwrite_output_dir
        trainer._others = (
            set()
            if meant
            else {os.path.join(folder, os.path.basename(found)) for found in _checkpoints_in(folder)}
        )


def load_weights_into(run: Run, folder: str) -> None:
    """Loads weights alone, through the strategy."""
    with taken_from_checkpoint("The weights"):
        run.strategy.state_in(TrainState(read_checked_weights(folder)))


def find_checkpoint(trainer: Trainer, wanted: str | bool | None) -> str | None:
    """The folder to resume from.

    Args:
        trainer: the trainer.
        wanted: a folder; True for the last valid one of the run's folder; None or False for none.

    Raises:
        CheckpointError: there is none.
    """
    run, folder = trainer.run, run_folder(trainer)
    started_anew = run.processes.attempt > 0
    if started_anew and (own := last_of_launch(run, folder)) is not None:
        return own
    if wanted is None or wanted is False:
        if trainer.args.ignore_data_skip:
            logger.warning("ignore_data_skip=True has no effect: no checkpoint is resumed.")
        if trainer.args.allow_resume_changes:
            logger.warning("allow_resume_changes=True has no effect: no checkpoint is resumed.")
        return None
    if wanted is not True:
        return named(run, os.fspath(wanted), checkpoint_at)
    found = last_in_common(run, folder)
    if found is None and not started_anew:
        raise none_to_resume(folder)
    return found


def last_of_launch(run: Run, folder: str) -> str | None:
    """The last valid checkpoint, where this very launch wrote it before it was started anew. A collective."""
    launch = run.processes.launch  # the same on every rank
    if launch is None:
        return None
    own = last_in_common(run, folder, lambda found: _launch_of(found) == launch)
    if run.is_main_process:
        logger.warning(
            "These processes were started anew (attempt %d): %s.",
            run.processes.attempt,
            f"the run goes on from {own}" if own is not None else "they had written no checkpoint yet",
        )
    return own


def _launch_of(checkpoint: str) -> Any:
    return (
        None if written_by_transformers(checkpoint) else read_run(checkpoint)["configuration"].get("launch")
    )


def none_to_resume(folder: str) -> CheckpointError:
    """The error of `resume_from_checkpoint=True` where there is nothing to go on from."""
    return CheckpointError(
        f"resume_from_checkpoint=True found no valid checkpoint in {folder!r}: leave it out to start anew."
    )


def checkpoint_at(path: str) -> str:
    """The folder that was named.

    Raises:
        CheckpointError: it cannot be a checkpoint.
    """
    if not os.path.isdir(path):
        near = did_you_mean(path, _checkpoints_in(os.path.dirname(path) or "."))
        raise CheckpointError(f"resume_from_checkpoint={path!r} is no folder.{near}")
    inside = _checkpoints_in(path)
    if inside and not os.path.exists(os.path.join(path, "manifest.json")):
        last = max(inside, key=lambda found: int(found.rpartition("-")[2]))
        raise CheckpointError(
            f"resume_from_checkpoint={path!r} is no checkpoint but a folder of them: name one, such as {last!r}."
        )
    return path


def _checkpoints_in(folder: str) -> set[str]:
    """The folders `checkpoint-STEP` in a folder, whole or not."""
    if not os.path.isdir(folder):
        return set()
    named = (name for name in os.listdir(folder) if re.fullmatch(rf"{PREFIX}-\d+", name))
    return {os.path.normpath(os.path.join(folder, name)) for name in named}


def note_groups(run: Run, checkpoint: str | None, optimizer: OptimizerFactory) -> list[list[str]] | None:
    """The names of the optimizer's parameters, of the bare model, where the checkpoint knows them by number alone."""
    if checkpoint is None or not written_by_transformers(checkpoint):
        return None
    return group_names(optimizer, run.model)


def restore(trainer: Trainer, run: Run, folder: str) -> Position:
    """Puts a run back to where its checkpoint was written.

    Returns:
        The position to go on from.

    Raises:
        ConfigurationError: something has changed that would corrupt the run.
        CheckpointError: the checkpoint cannot be read, or does not fit.
    """
    if written_by_transformers(folder):
        return restore_from_transformers(trainer, run, folder)
    contents = load_checkpoint(folder, run.processes.rank, run.processes.world_size, model=run.model)
    assert contents.train_state is not None
    assert isinstance(contents.trainer_state, dict)
    saved = checked_state(contents.trainer_state, folder)
    where = check_position(contents.position)
    loss = check_loss(contents.loss)
    with taken_from_checkpoint("The arguments or the schedule"):
        check_changes(run, contents, folder)
        changed = what_changed(run, contents)
    if contents.scheduler is not None and run.lr_scheduler is not None:
        check_scheduler(run.lr_scheduler, contents.scheduler)
    with taken_from_checkpoint("The weights or the optimizer's state"):
        run.strategy.state_in(contents.train_state)
    if contents.scheduler is not None and run.lr_scheduler is not None:
        over = saved.global_step >= run.state.max_steps
        restore_scheduler(run.lr_scheduler, contents.scheduler, over, trainer._per_evaluation)
    take_over(run.state, saved)
    trainer._losses.restore(loss, run.processes.rank, run.processes.world_size)
    restore_plugin_states(run, contents.plugin_states)
    restore_callback_states(trainer, contents.callback_states)
    if changed and run.is_main_process:
        logger.warning("Changed since %s was written: %s.", folder, "; ".join(changed))
    assert trainer._layout is not None
    before = saved_layout(where)
    carries = bool(contents.train_state.gradients)
    trainer._epoch_was_stopped = where.get("epoch_stop", False)
    logger.info(
        "Resuming from %s: step %d, epoch %s.", folder, run.state.global_step, f"{run.state.epoch or 0:.2f}"
    )
    if where["data"] is not None:
        checked(where["data"])
    return Position(
        epoch=where["epoch"],
        batch=where["batch"],
        micro_batches=micro_batches(where["micro_batches"], before, trainer._layout, carries),
        epoch_ended=where["epoch_ended"],
        data=where["data"],
        random=contents.random,
    )
