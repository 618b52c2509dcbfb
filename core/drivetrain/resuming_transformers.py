"""Going on from a checkpoint that the Trainer of transformers wrote, as transformers 4.34.0 itself goes on from it.

The place in the data is not in the checkpoint. 4.34.0 counts it back from the updates done and the arguments as they
are now, and so does this; the order of the epoch under way is made again, without loading a row
(`transformers_order`). Then the generators take the states that were saved.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint import RandomState
from drivetrain.checkpoint.canonical import HOW_NOT_WHAT
from drivetrain.checkpoint.transformers_files import TransformersCheckpoint, read_transformers
from drivetrain.data import batches_of, has_length
from drivetrain.errors import CheckpointError
from drivetrain.gathering import broadcast
from drivetrain.loop import Position
from drivetrain.transformers_order import position_in_data
from drivetrain.trust import (
    check_scheduler,
    checked_state,
    is_count,
    restore_scheduler,
    take_over,
    taken_from_checkpoint,
)

if TYPE_CHECKING:
    from drivetrain.callbacks import TrainerState
    from drivetrain.loss import LossWindow
    from drivetrain.run import Run
    from drivetrain.slots import LRScheduler
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

KNOWN = "4.34."
"""The versions whose order of rows is made again."""


def restore_from_transformers(trainer: Trainer, run: Run, folder: str) -> Position:
    """Puts a run to where a checkpoint of transformers was written. A collective.

    Returns:
        The position to go on from.
    """
    assert trainer._group_names is not None
    processes = run.processes
    saved = read_transformers(folder, trainer._group_names, run.model, processes.rank, processes.world_size)
    state = checked_state(saved.state, folder)
    state.max_steps = (
        saved.state["max_steps"] if is_count(saved.state.get("max_steps")) else run.state.max_steps
    )
    said = [_what_it_is(folder, saved)]
    changed = _what_changed(run, saved.train_state.groups, state)
    with taken_from_checkpoint("The weights or the optimizer's state"):
        run.strategy.state_in(saved.train_state)
    take_over(run.state, state)
    if run.lr_scheduler is not None:
        _restore_scheduler(trainer, run.lr_scheduler, saved.scheduler, folder)
    _restore_losses(trainer._losses, state)
    epoch, done, updates, note = _place(run, state)
    said += [note] if note else []
    if changed:
        said.append(f"Changed since {folder} was written: {'; '.join(changed)}.")
    seeds = f"draws from a seed of ({run.args.seed}, {run.state.global_step}, r)"
    before = broadcast(
        saved.world_size, processes
    )  # nodes that share no disk have random states of their own ranks
    if before not in (None, processes.world_size):
        assert trainer._layout is not None
        said.append(
            f"{folder} was written by {before} process(es), and {processes.world_size} go on: an update has "
            f"{trainer._layout.rows} rows, as the arguments say now, and rank r > 0 {seeds}."
        )
    elif saved.random is None:
        said.append(f"{folder} has no random state, so rank r {seeds}.")
    data: dict[str, Any] | None = None
    if not run.args.ignore_data_skip and state.global_step < run.state.max_steps:
        evaluations = _evaluations(state, updates)
        world = before or processes.world_size
        data, note = position_in_data(run, epoch, done, world, evaluations, saved.random)
        said += [note] if note else []
    if run.is_main_process:
        for line in said:
            logger.warning("%s", line)
    logger.info("Resuming from %s: step %d, epoch %d, batch %d.", folder, run.state.global_step, epoch, done)
    random = saved.random or RandomState.derived(run.args.seed, state.global_step, processes.rank)
    return Position(epoch=epoch, batch=done if data else 0, data=data, random=random)


def _what_it_is(folder: str, saved: TransformersCheckpoint) -> str:
    by = f"transformers {saved.version}" if saved.version else "transformers"
    text = f"{folder} was written by {by} and has no seal: that its files are whole, nothing says."
    if saved.version and not saved.version.startswith(KNOWN):
        text += (
            f" The order of the epoch under way is that of {KNOWN}0; where {saved.version} has another, some of its "
            "rows are seen twice and some not."
        )
    return text


def _what_changed(run: Run, saved: list[dict[str, Any]], state: TrainerState) -> list[str]:
    """Options of the optimizer and the length of the run that are not those of the arguments now, each as a clause."""
    changed = []
    groups = run.optimizer.param_groups if run.optimizer is not None else []
    for number, (now, before) in enumerate(
        zip(groups, saved, strict=False) if len(groups) == len(saved) else ()
    ):
        for key in sorted(now.keys() & before.keys() - {"params", "lr", *HOW_NOT_WHAT}):
            one, other = (list(v) if isinstance(v, tuple) else v for v in (before[key], now[key]))
            if bool(one != other):
                name = "learning_rate" if key == "initial_lr" else key
                changed.append(
                    f"{name} of group {number} was {before[key]!r}, which holds, and is {now[key]!r}"
                )
    if state.max_steps != run.state.max_steps:
        changed.append(f"the run had {state.max_steps} updates and has {run.state.max_steps}")
    return changed


def _restore_scheduler(trainer: Trainer, scheduler: LRScheduler, saved: dict[str, Any], folder: str) -> None:
    """Gives the scheduler its state.

    Raises:
        CheckpointError: it is the state of another scheduler, or cannot be gone on from.
    """
    live = scheduler.state_dict()
    lacking = [key for key in ("last_epoch", "base_lrs", "best") if key in live and key not in saved]
    if lacking:
        raise CheckpointError(
            f"The scheduler.pt of {folder} is of another scheduler than {type(scheduler).__name__}, which has a "
            f"{lacking[0]!r}: resume with the lr_scheduler_type that it was written with."
        )
    state = {key: saved[key] for key in live if key in saved}  # other versions of torch have other keys
    if "lr_lambdas" in live and not any(state.get("lr_lambdas") or ()):
        state["lr_lambdas"] = live["lr_lambdas"]  # a function's, which has no state there or here
    check_scheduler(scheduler, state)
    over = trainer.run.state.global_step >= trainer.run.state.max_steps
    restore_scheduler(scheduler, state, over, trainer._per_evaluation)


def _restore_losses(losses: LossWindow, state: TrainerState) -> None:
    """The next row begins at this update, as in 4.34.0; the mean of the run is that of its rows so far."""
    losses.last_logged = state.global_step
    total, rows_end = 0.0, 0
    for row in state.log_history:
        loss, step = row.get("loss"), row.get("step")
        if isinstance(loss, (int, float)) and type(step) is int and rows_end < step <= state.global_step:
            total += loss * (step - rows_end)
            rows_end = step
    if rows_end:  # updates after the last row count as those before it
        losses.total = total / rows_end * state.global_step


def _place(run: Run, state: TrainerState) -> tuple[int, int, int, str | None]:
    """The epoch under way, its micro-batches that are done, the updates of an epoch, and what is to be said of it."""
    assert run.split is not None
    loader, step, epoch = run.train_dataloader, state.global_step, state.epoch or 0.0
    batches = batches_of(loader, run.split.world) if has_length(loader) else None
    if batches is None:
        # An epoch of a stream is counted by the updates of the whole run, there as here.
        whole = int(epoch)
        return (
            whole,
            round((epoch - whole) * max(state.max_steps, 1) * run.accumulation),
            state.max_steps,
            None,
        )
    batches *= run.split.parts
    updates = max(batches // run.accumulation, 1)
    whole, done = step // updates, step % updates * run.accumulation
    reached = whole + done / batches
    note = None
    if abs(reached - epoch) > 0.5 / batches and not run.args.ignore_data_skip:
        note = (
            f"The checkpoint says that {step} updates are {epoch:.2f} epochs; with {updates} updates an epoch, as the "
            f"data and the arguments give now, the run goes on at {reached:.2f}, where transformers would."
        )
    return whole, done, updates, note


def _evaluations(state: TrainerState, updates: int) -> Counter[int]:
    """Evaluations of each epoch, by the log."""
    logged = [row for row in state.log_history if any(key.startswith("eval_") for key in row)]
    return Counter((row.get("step", 1) - 1) // max(updates, 1) for row in logged)
