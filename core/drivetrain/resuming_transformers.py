"""Going on from a checkpoint that the Trainer of transformers wrote, as transformers 4.34.0 itself goes on from it.

The place in the data is not in the checkpoint. 4.34.0 counts it back from the updates done and the arguments as they
are now, and makes the order of the epoch under way again: of one process by drawing from torch's global generator what
its samplers draw for each epoch before, of several by a generator of its own, whose seed never changes. Both are done
here, without loading a row. Then the generators take the states that were saved.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import RandomSampler

from drivetrain.checkpoint import RandomState
from drivetrain.checkpoint.canonical import HOW_NOT_WHAT
from drivetrain.checkpoint.rehearsal import rehearse_schedule
from drivetrain.checkpoint.transformers_files import TransformersCheckpoint, read_transformers
from drivetrain.data import batches_of, has_length, randomness
from drivetrain.data.loader import fetches_ahead
from drivetrain.data.source import MAP, draw, generators_of, group_of, kind_of, map_order, needs_no_state
from drivetrain.errors import CheckpointError
from drivetrain.gathering import broadcast
from drivetrain.loop import Position
from drivetrain.trust import check_scheduler, checked_state, is_count, taken_from_checkpoint

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
    assert trainer.group_names is not None
    processes = run.processes
    saved = read_transformers(folder, trainer.group_names, run.model, processes.rank, processes.world_size)
    state = checked_state(saved.state, folder)
    state.max_steps = (
        saved.state["max_steps"] if is_count(saved.state.get("max_steps")) else run.state.max_steps
    )
    said = [_what_it_is(folder, saved)]
    changed = _what_changed(run, saved.train_state.groups, state)
    with taken_from_checkpoint("The weights or the optimizer's state"):
        run.strategy.state_in(saved.train_state)
    for name in ("epoch", "global_step", "total_flos", "log_history", "best_metric", "best_model_checkpoint"):
        setattr(run.state, name, getattr(state, name))
    if run.lr_scheduler is not None:
        _restore_scheduler(trainer, run.lr_scheduler, saved.scheduler, folder)
    _restore_losses(trainer.losses, state)
    epoch, done, note = _place(run, state)
    said += [note] if note else []
    if changed:
        said.append(f"Changed since {folder} was written: {'; '.join(changed)}.")
    seeds = f"draws from a seed of ({run.args.seed}, {run.state.global_step}, r)"
    before = broadcast(
        saved.world_size, processes
    )  # nodes that share no disk have random states of their own ranks
    if before not in (None, processes.world_size):
        assert trainer.layout is not None
        said.append(
            f"{folder} was written by {before} process(es), and {processes.world_size} go on: an update has "
            f"{trainer.layout.rows} rows, as the arguments say now, and rank r > 0 {seeds}."
        )
    elif saved.random is None:
        said.append(f"{folder} has no random state, so rank r {seeds}.")
    data: dict[str, Any] | None = None
    if not run.args.ignore_data_skip:
        data, note = _order(run, epoch, done, before or processes.world_size)
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
    if trainer.run.state.global_step < trainer.run.state.max_steps:
        rehearse_schedule(scheduler, state, trainer.per_evaluation)
    with taken_from_checkpoint("The scheduler's state"):
        scheduler.load_state_dict(state)


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


def _place(run: Run, state: TrainerState) -> tuple[int, int, str | None]:
    """The epoch under way, the micro-batches of it that are done, and what is to be said of it."""
    assert run.split is not None
    loader, step, epoch = run.train_dataloader, state.global_step, state.epoch or 0.0
    batches = batches_of(loader, run.split.world) if has_length(loader) else None
    if batches is None:
        # An epoch of a stream is counted by the updates of the whole run, there as here.
        whole = int(epoch)
        return whole, round((epoch - whole) * max(state.max_steps, 1) * run.accumulation), None
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
    return whole, done, note


def _order(run: Run, epoch: int, done: int, world: int) -> tuple[dict[str, Any] | None, str | None]:
    """The position in the data, None at an epoch's beginning, and what is to be said of it. A collective.

    Args:
        run: the run.
        epoch: the epoch under way.
        done: micro-batches of it that are done.
        world: processes that wrote the checkpoint.
    """
    assert run.split is not None
    loader = run.train_dataloader
    plain = kind_of(loader) == MAP and needs_no_state(loader)
    shuffled = plain and isinstance(loader.batch_sampler.sampler, RandomSampler)
    for _ in range(epoch if world == 1 else 0):
        _pass_over(run)
    if not done:
        return None, None
    group = group_of(loader, run.split.world)
    batch = done // run.split.parts
    data: dict[str, Any] = {
        "batch": batch,
        "row": batch * group,
        "group": group,
        "epoch": epoch,
        "world": run.processes.world_size,
    }
    start = randomness.capture()
    if not plain:
        data["start"] = randomness.to_json(start)
        data["generators"] = [randomness.tensor_to_text(g.get_state()) for g in generators_of(loader)]
    elif shuffled and world > 1:
        # accelerate gives the sampler a generator that nobody seeds, and each epoch takes two permutations of it.
        data["base_seed"] = broadcast(draw(), run.processes)
        data["seed"] = torch.Generator().initial_seed()
        data["permutation"] = 2 * epoch
    else:
        order = map_order(loader, run.processes, run.processes.world_size)
        data["base_seed"], data["seed"] = order.base_seed, order.seed
    if fetches_ahead(loader):
        # 4.34.0 has the next batch in its hands when it saves, so what fetching draws is drawn a batch ahead.
        data["ahead"], data["pending"] = list(randomness.KINDS), randomness.to_json(start)
    return data, None if shuffled or kind_of(loader) != MAP else _other_order(epoch, world, run.args)


def _pass_over(run: Run) -> None:
    """Draws what 4.34.0 draws for an epoch that is over."""
    loader = run.train_dataloader
    if kind_of(loader) != MAP:
        draw()
        return
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, RandomSampler):
        map_order(loader, run.processes, 1)
    elif sampler.generator is None and not sampler.replacement:
        draw()
    else:
        for _ in sampler:
            pass


def _other_order(epoch: int, world: int, args: Any) -> str | None:
    """What is to be said where the order of the epoch under way is one that 4.34.0 did not have."""
    if args.data_seed is not None:
        why = "data_seed is heeded"
    elif args.group_by_length and world > 1:
        why = "several processes group rows by length in another way"
    else:
        return None
    return (
        f"The order of epoch {epoch} is another here than the one that transformers began, since {why}: of its rest "
        "some rows are seen twice and some not."
    )
