"""A run's checkpoint: what is put into it, where it goes, and which ones stay."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from drivetrain.background import BackgroundWriter, Write
from drivetrain.checkpoint import (
    CheckpointContents,
    Exchange,
    alike,
    alone,
    rotate,
    save_checkpoint,
    save_spread,
)
from drivetrain.errors import CheckpointError
from drivetrain.evaluation_weights import evaluation_weights
from drivetrain.gathering import exchange_of
from drivetrain.host_copies import HostCopies
from drivetrain.rank_part import RankPart, bring_together, rank_part
from drivetrain.resume_checks import facts_of
from drivetrain.slots import STATE_PARTS

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

PREFIX = "checkpoint"


def run_folder(of: Trainer | Run) -> str:
    """The folder of the run: the output folder, or one for each trial of a search."""
    if of.state.is_hyper_param_search and of.state.trial_name:
        return os.path.join(of.args.output_dir, of.state.trial_name)
    return str(of.args.output_dir)


def place_of(trainer: Trainer, step: int) -> str:
    """The folder of the checkpoint of a step."""
    return os.path.join(run_folder(trainer), f"{PREFIX}-{step}")


def step_of(folder: str) -> int:
    """The step of a checkpoint, by its name."""
    return int(os.path.basename(folder).removeprefix(f"{PREFIX}-"))


def save(
    trainer: Trainer,
    run: Run,
    metrics: dict[str, float] | None,
    part: RankPart | None = None,
) -> None:
    """Writes `checkpoint-STEP`, notes whether it is the best, and deletes what is too old. A collective.

    Under `save_async` the state is copied to host memory, and a thread writes it; `end_write` tells how it went.

    Args:
        trainer: its `save_model` writes the weights.
        run: the run.
        metrics: of the evaluation at this very step, or None.
        part: of this rank, where what it has now is not what is to be written.
    """
    folder = place_of(trainer, run.state.global_step)
    if folder in (trainer._others or ()) and run.keeps_state:
        trainer._others = set()
        logger.warning(
            "%s is of another run and is replaced, as are those after it: choose another output_dir, or set "
            "overwrite_output_dir=True where that is meant.",
            folder,
        )
    if trainer._checkpoints_written is not None:
        trainer._checkpoints_written.add(folder)
    write = Write(folder, (run.state.best_metric, run.state.best_model_checkpoint))
    with evaluation_weights(run), _best_if_written(run, write):
        note_best(trainer, folder, metrics)
        contents = gather(trainer, run, part if part is not None else rank_part(trainer, run))
        state, writer = contents.train_state, trainer._writer
        assert state is not None
        several = state.spread or len(run.writers) > 1
        if state.spread and run.is_main_process:
            _tell_not_called(type(trainer).__name__, trainer._own_saves())
        if writer is None:
            between: Exchange = exchange_of(run.processes)
            _write(trainer, run, folder, contents, between, run.state.best_model_checkpoint)
            trainer._last_saved = folder
            return
        work: Callable[[], None] | None = None
        if several or run.keeps_state:
            between = writer.exchange() if several else alone
            work = partial(_write, trainer, run, folder, contents, between, run.state.best_model_checkpoint)
            try:
                if state.spread or run.keeps_state:
                    _set_aside(contents, writer.copies)
            except CheckpointError as error:  # told to all, as an error of the thread's is
                work = partial(_fail, between, error)
        writer.begin(write, work)


def end_write(run: Run, writer: BackgroundWriter) -> None:
    """Waits for the checkpoint that a thread writes. A collective.

    Raises:
        CheckpointError: it was not written, by this rank or by another.
    """
    write = writer.under_way
    assert write is not None
    writer.join()
    writer.under_way = None
    with _best_if_written(run, write), alike(exchange_of(run.processes)):
        writer.raise_error()
    writer.saved.append(write.folder)


def _write(
    trainer: Trainer,
    run: Run,
    folder: str,
    contents: CheckpointContents,
    exchange: Exchange,
    spared: str | None,
) -> None:
    state = trainer._snapshot = contents.train_state
    assert state is not None
    try:
        if state.spread:
            save_spread(
                folder,
                contents,
                rank=run.processes.rank,
                exchange=exchange,
                save_model=trainer._save_description,
            )
        else:
            meanwhile = trainer._writer is not None
            with alike(exchange):
                if run.keeps_state:
                    if not state.weights and not run.is_main_process:
                        raise CheckpointError(
                            f"Checkpoint {os.path.basename(folder)} was not written, because the strategy gives its "
                            "state to rank 0 alone: leave save_on_each_node out, and let output_dir be one folder for "
                            "all nodes."
                        )
                    save_checkpoint(
                        folder, contents, save_model=trainer._save_into_checkpoint, meanwhile=meanwhile
                    )
    finally:
        trainer._snapshot = None
    if run.keeps_state:  # when all have theirs: what goes may be the last one that the nodes have in common
        rotate(run_folder(trainer), run.args.save_total_limit, best=spared, latest=folder)


def _fail(exchange: Exchange, error: BaseException) -> None:
    with alike(exchange):
        raise error


@contextmanager
def _best_if_written(run: Run, write: Write) -> Iterator[None]:
    """What is not there cannot be the best: after an error the one before is."""
    try:
        yield
    except BaseException:
        if run.state.best_model_checkpoint == write.folder:
            run.state.best_metric, run.state.best_model_checkpoint = write.best_before
        raise


def _set_aside(contents: CheckpointContents, copies: HostCopies) -> None:
    """Puts copies in host memory in the place of all that training changes, but for what is a copy already."""
    state = contents.train_state
    assert state is not None
    live = {name: getattr(state, name) for name in STATE_PARTS if name not in state.own}
    rest = {
        name: getattr(contents, name)
        for name in ("scheduler", "loss", "position", "plugin_states", "callback_states")
    }
    made = copies.of({"state": live, "rest": rest})
    contents.train_state = replace(state, **made["state"])
    for name, value in made["rest"].items():
        setattr(contents, name, value)


@cache
def _tell_not_called(kind: str, overridden: tuple[str, ...]) -> None:
    """Says it once of a class: no process holds the whole model that it would write."""
    if overridden:
        logger.warning(
            "%s overrides %s, which checkpoints do not call while each process writes a part of the weights: choose "
            "state_dict_type='full_state_dict' where it must be called.",
            kind,
            " and ".join(overridden),
        )


def gather(trainer: Trainer, run: Run, part: RankPart) -> CheckpointContents:
    """All that a checkpoint holds. A collective."""
    state = run.state
    return CheckpointContents(
        train_state=run.strategy.state_out(),
        scheduler=run.lr_scheduler.state_dict() if run.lr_scheduler is not None else None,
        # A copy, of which who writes makes JSON: of a long log that takes a while.
        trainer_state={**vars(state), "log_history": [dict(row) for row in state.log_history]},
        args=run.args.to_dict(),
        plugins={f"{kind}:{name}": version for kind, name, version, _ in run.plan.describe()},
        configuration={"launch": run.processes.launch, **facts_of(run)},
        **bring_together(part, run),
    )


def note_best(trainer: Trainer, folder: str, metrics: dict[str, float] | None) -> None:
    """Remembers the checkpoint whose metric is the best so far."""
    args, state = trainer.args, trainer.state
    if metrics is None or args.metric_for_best_model is None:
        return
    value = metrics[trainer._metric_key(args.metric_for_best_model, metrics)]
    best = state.best_metric
    if (
        best is None
        or state.best_model_checkpoint is None
        or (value > best if args.greater_is_better else value < best)
    ):
        state.best_metric = value
        state.best_model_checkpoint = folder


def rotate_at_end(trainer: Trainer) -> None:
    """Under `save_total_limit=1` the best alone is left, where a best one is kept track of.

    Else a run that was killed after a save and before its rotation may have left one too many.
    """
    args, best, folder = trainer.args, trainer.state.best_model_checkpoint, run_folder(trainer)
    if not trainer.run.keeps_state:
        return
    if best is not None and args.save_total_limit == 1:
        rotate(folder, 1, best=best, latest=best, fresh=False)
        return
    resumed = trainer._resumed_from if args.save_strategy != "no" else None
    if resumed is not None and os.path.realpath(os.path.dirname(resumed)) == os.path.realpath(folder):
        rotate(folder, args.save_total_limit, best=best)
