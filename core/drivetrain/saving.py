"""A run's checkpoint: what is put into it, and how a run is put back."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.background import copied, on_host
from drivetrain.callbacks import TrainerState
from drivetrain.checkpoint import (
    CheckpointContents,
    RandomState,
    last_checkpoint,
    load_checkpoint,
    read_run,
    read_weights,
    rotate,
    save_checkpoint,
    sweep,
)
from drivetrain.checkpoint.plain import plain
from drivetrain.elastic import micro_batches, saved_layout
from drivetrain.errors import CheckpointError, did_you_mean
from drivetrain.gathering import broadcast
from drivetrain.loop import Position
from drivetrain.slots import TrainState

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

PREFIX = "checkpoint"


def run_folder(trainer: Trainer) -> str:
    """The folder of the run: the output folder, or one for each trial of a search."""
    if trainer.state.is_hyper_param_search and trainer.state.trial_name:
        return os.path.join(trainer.args.output_dir, trainer.state.trial_name)
    return trainer.args.output_dir


def save(trainer: Trainer, run: Run, metrics: dict[str, float] | None) -> None:
    """Writes `checkpoint-STEP`, notes whether it is the best, and deletes what is too old.

    Under `save_async` the state is copied to host memory, and a thread writes it; what goes wrong there is
    raised by the next save, or at the end of training.

    Args:
        trainer: its `save_model` writes the weights.
        run: the run.
        metrics: of the evaluation at this very step, or None.
    """
    if trainer.writer is not None:
        trainer.writer.wait()  # one at a time; and its failure is told before there is another
    folder = os.path.join(run_folder(trainer), f"{PREFIX}-{run.state.global_step}")
    if folder in (trainer.others or ()) and run.is_main_process:
        trainer.others = set()
        logger.warning(
            "%s is of another run and is replaced, as are those after it: choose another output_dir, or set "
            "overwrite_output_dir=True where that is meant.",
            folder,
        )
    best = run.state.best_metric, run.state.best_model_checkpoint
    note_best(trainer, folder, metrics)
    contents = gather(trainer, run)
    spared = run.state.best_model_checkpoint
    assert contents.train_state is not None
    spread = contents.train_state.spread

    def write() -> str:
        try:
            save_checkpoint(
                folder,
                contents,
                save_model=trainer.save_description if spread else trainer.save_into_checkpoint,
                rank=run.processes.rank,
                world_size=run.processes.world_size,
                barrier=run.processes.barrier,
                agree=lambda fine: all_agree(run, fine),
            )
        except BaseException:
            # What is not there cannot be the best.
            run.state.best_metric, run.state.best_model_checkpoint = best
            raise
        if run.is_main_process:
            rotate(run_folder(trainer), run.args.save_total_limit, best=spared, latest=folder)
        return folder

    if trainer.writer is None:
        trainer.snapshot = contents.train_state
        try:
            trainer.last_saved = write()
        finally:
            trainer.snapshot = None
        run.processes.barrier()
    else:
        contents.train_state = trainer.snapshot = on_host(contents.train_state)
        contents.scheduler, contents.loss = copied(contents.scheduler), copied(contents.loss)
        contents.plugin_states = copied(contents.plugin_states)
        contents.callback_states = copied(contents.callback_states)
        trainer.writer.submit(write)


def all_agree(run: Run, fine: bool) -> bool:
    """Whether it went well on every rank. A collective."""
    return bool(run.strategy.collect(torch.tensor([int(fine)], device=run.device)).all())


def gather(trainer: Trainer, run: Run) -> CheckpointContents:
    """All that a checkpoint holds. A collective."""
    position = trainer.position
    return CheckpointContents(
        train_state=run.strategy.state_out(),
        scheduler=run.lr_scheduler.state_dict() if run.lr_scheduler is not None else None,
        random=RandomState.capture(),
        trainer_state=run.state.to_json(),
        args=run.args.to_dict(),
        plugins={f"{kind}:{name}": version for kind, name, version, _ in run.plan.describe()},
        position={
            "epoch": position.epoch,
            "batch": position.batch,
            "micro_batches": position.micro_batches,
            "epoch_ended": position.epoch_ended,
            "data": trainer.batches.position() if trainer.batches is not None else None,
            "epoch_stop": run.control.should_epoch_stop,
            "layout": trainer.layout.to_json() if trainer.layout is not None else None,
        },
        configuration={"launch": run.processes.launch},
        loss=trainer.losses.state(run.strategy),
        plugin_states=plugin_states(run),
        callback_states=callback_states(trainer),
    )


def note_best(trainer: Trainer, folder: str, metrics: dict[str, float] | None) -> None:
    """Remembers the checkpoint whose metric is the best so far."""
    args, state = trainer.args, trainer.state
    if metrics is None or args.metric_for_best_model is None:
        return
    value = metrics[trainer.metric_key(args.metric_for_best_model, metrics)]
    best = state.best_metric
    if (
        best is None
        or state.best_model_checkpoint is None
        or (value > best if args.greater_is_better else value < best)
    ):
        state.best_metric = value
        state.best_model_checkpoint = folder


def rotate_at_end(trainer: Trainer) -> None:
    """Under `save_total_limit=1` the best alone is left, where a best one is kept track of."""
    args, best = trainer.args, trainer.state.best_model_checkpoint
    if args.should_save and best is not None and args.save_total_limit == 1:
        rotate(run_folder(trainer), 1, best=best, latest=best)


def load_weights_into(run: Run, folder: str) -> None:
    """Loads weights alone, through the strategy."""
    run.strategy.state_in(TrainState(read_weights(folder)))


def plugin_states(run: Run) -> dict[str, Any]:
    """The state of each plugin that gives one, by its name."""
    states: dict[str, Any] = {}
    for name, ask in _one_by_one(run, "save_state"):
        for state in ask(run=run):
            states[name] = state
    return states


def restore_plugin_states(run: Run, states: dict[str, Any]) -> None:
    """Gives each plugin its state back; says which states nobody wanted."""
    left = dict(states)
    for name, give in _one_by_one(run, "load_state"):
        if name in left:
            give(run=run, state=left.pop(name))
    for name in left:
        logger.warning("The checkpoint holds a state of the plugin %r, which is not active now.", name)


def _one_by_one(run: Run, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The hook of each plugin by itself: its name, and what calls it through pluggy."""
    manager = run.plan.manager
    plugins = manager.get_plugins()
    for found in getattr(manager.hook, hook).get_hookimpls():
        others = [plugin for plugin in plugins if plugin is not found.plugin]
        yield found.plugin_name, manager.subset_hook_caller(hook, others)


def callback_states(trainer: Trainer) -> dict[str, Any]:
    """The state of each callback that tells one, by place and class: by `save_state`, or as transformers' do."""
    states: dict[str, Any] = {}
    for place, callback in enumerate(trainer.callback_handler.callbacks):
        state = None
        if hasattr(callback, "save_state"):
            state = callback.save_state()
        elif callable(getattr(callback, "state", None)):
            state = callback.state()["attributes"]
        if state is not None:
            states[f"{place}:{type(callback).__name__}"] = state
    return states


def restore_callback_states(trainer: Trainer, states: dict[str, Any]) -> None:
    """Gives callbacks their state back, to those of the same class in the same order."""
    waiting: dict[str, list[Any]] = {}
    for key, state in states.items():
        waiting.setdefault(key.partition(":")[2], []).append(state)
    for callback in trainer.callback_handler.callbacks:
        found = waiting.get(type(callback).__name__)
        if not found:
            continue
        if hasattr(callback, "load_state"):
            callback.load_state(found.pop(0))
        elif callable(getattr(callback, "state", None)):
            for name, value in found.pop(0).items():
                setattr(callback, name, value)


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
        return None
    if wanted is not True:
        return checkpoint_at(os.fspath(wanted))
    # Looking at every file once is enough, and all ranks must find the same.
    found: str | None = broadcast(last_checkpoint(folder) if run.is_main_process else None, run.processes)
    if found is None and not started_anew:
        raise none_to_resume(folder)
    return found


def last_of_launch(run: Run, folder: str) -> str | None:
    """The last valid checkpoint, where this very launch wrote it before it was started anew. A collective."""
    own = None
    if run.is_main_process and run.processes.launch is not None:
        own = last_checkpoint(
            folder,
            lambda found: read_run(found)["configuration"].get("launch") == run.processes.launch,
        )
        logger.warning(
            "These processes were started anew (attempt %d): %s.",
            run.processes.attempt,
            f"the run goes on from {own}" if own is not None else "they had written no checkpoint yet",
        )
    found = broadcast(own, run.processes)
    return str(found) if found is not None else None


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


def note_others(trainer: Trainer, checkpoint: str | None) -> None:
    """Remembers which checkpoints stand there from other runs, so that replacing one can be said."""
    if trainer.others is None:  # after a restart with a smaller batch they may be this run's own
        folder = run_folder(trainer)
        own = checkpoint is not None and os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(
            folder
        )
        meant = own or trainer.args.overwrite_output_dir
        trainer.others = (
            set()
            if meant
            else {os.path.join(folder, os.path.basename(found)) for found in _checkpoints_in(folder)}
        )


# What may differ between a run and its resumption without changing what is computed.
_INCIDENTAL = {
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "local_rank",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "do_train",
    "do_eval",
    "do_predict",
    "report_to",
    "hub_token",
    "push_to_hub_token",
}


def what_changed(run: Run, contents: CheckpointContents) -> list[str]:
    """Arguments and plugins that are not those the checkpoint was written with, each as a clause."""
    now = plain(run.args.to_dict())
    if isinstance(now["plugins"], list):
        del now["plugins"]  # objects, which cannot be compared with what is left of them in a file
    changed = [
        f"{name} was {contents.args[name]!r} and is {now[name]!r}"
        for name in now
        if name in contents.args and name not in _INCIDENTAL and contents.args[name] != now[name]
    ]
    plugins = {f"{kind}:{name}": version for kind, name, version, _ in run.plan.describe()}
    for key in sorted(contents.plugins.keys() & plugins.keys()):
        if contents.plugins[key] != plugins[key]:
            changed.append(f"{key} had version {contents.plugins[key]} and has {plugins[key]}")
    return changed


def clean_up(trainer: Trainer) -> None:
    """Removes what a run that was killed left half-written in this run's folder."""
    if trainer.run.is_main_process:
        sweep(run_folder(trainer))


def restore(trainer: Trainer, run: Run, folder: str) -> Position:
    """Puts a run back to where its checkpoint was written.

    Returns:
        The position to go on from.
    """
    contents = load_checkpoint(folder, run.processes.rank, run.processes.world_size, model=run.model)
    assert contents.train_state is not None
    run.strategy.state_in(contents.train_state)
    if contents.scheduler is not None and run.lr_scheduler is not None:
        run.lr_scheduler.load_state_dict(contents.scheduler)
    assert isinstance(contents.trainer_state, dict)
    saved = TrainerState.from_dict(contents.trainer_state)
    for name in ("epoch", "global_step", "total_flos", "log_history", "best_metric", "best_model_checkpoint"):
        setattr(run.state, name, getattr(saved, name))
    trainer.losses.restore(contents.loss)
    restore_plugin_states(run, contents.plugin_states)
    restore_callback_states(trainer, contents.callback_states)
    changed = what_changed(run, contents)
    if changed and run.is_main_process:
        logger.warning("Changed since %s was written: %s.", folder, "; ".join(changed))
    where = contents.position or {}
    assert trainer.layout is not None
    before = saved_layout(where)
    carries = bool(contents.train_state.gradients)
    trainer.epoch_was_stopped = bool(where.get("epoch_stop"))
    logger.info(
        "Resuming from %s: step %d, epoch %s.", folder, run.state.global_step, f"{run.state.epoch or 0:.2f}"
    )
    return Position(
        epoch=where["epoch"],
        batch=where["batch"],
        micro_batches=micro_batches(where["micro_batches"], before, trainer.layout, carries),
        epoch_ended=where["epoch_ended"],
        data=where["data"],
        random=contents.random,
    )
