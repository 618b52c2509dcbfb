"""A run's checkpoint: what is put into it, where it goes, and which ones stay."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from drivetrain.background import copied, on_host
from drivetrain.checkpoint import CheckpointContents, RandomState, rotate, save_checkpoint
from drivetrain.listener_states import callback_states, plugin_states
from drivetrain.resume_checks import facts_of

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
        configuration={"launch": run.processes.launch, **facts_of(run)},
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
