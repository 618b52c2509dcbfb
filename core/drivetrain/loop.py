"""The training loop. `hookspecs.py` draws the timeline that it keeps.

    each epoch:             on_epoch_begin
      each update:          on_step_begin
        each micro-batch:   on_micro_batch, forward and backward; on_substep_end but for the last
                            on_gradients_ready, update, on_step_end
                            what is due: a row of the log, an evaluation, a checkpoint
                            on_epoch_end; what is due by epochs

Events are tuples of functions, bound once: an event that nobody listens to costs a test. Nothing in here
waits for the device, except where a row of the log is read. `lap` says which part of an update has just ended.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint import RandomState
from drivetrain.data import EpochIterator, carry_over

if TYPE_CHECKING:
    from drivetrain.length import RunLength
    from drivetrain.loss import LossWindow
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


@dataclass(slots=True)
class Position:
    """Where a run stands between two micro-batches.

    Attributes:
        epoch: the epoch under way, from 0.
        batch: micro-batches of it that are done.
        micro_batches: micro-batches of the run that are done; the accumulation is counted by them.
        epoch_ended: whether `on_epoch_end` of this epoch is done as well.
        data: the data's own position, as `EpochIterator.position()` gives it.
        random: the random state to go on with, for a resumed run; None for one that begins.
    """

    epoch: int = 0
    batch: int = 0
    micro_batches: int = 0
    epoch_ended: bool = False
    data: Any = None
    random: RandomState | None = None


def train_loop(trainer: Trainer, run: Run, length: RunLength, losses: LossWindow, position: Position) -> None:
    """Trains until the updates are done, or somebody stops it.

    Args:
        trainer: its `training_step` is called for each micro-batch, and `serve` for what is due.
        run: prepared: model, optimizer and scheduler stand, and a checkpoint is restored.
        length: how long the run is.
        losses: takes the loss of each micro-batch.
        position: where to begin; kept true, so that a checkpoint can be written at any time.
    """
    args, state, strategy, events = run.args, run.state, run.strategy, run.plan.events
    training_step, timing, lap = trainer.training_step, run.timing, run.timing.lap
    accumulation = run.accumulation
    count_flos = trainer.floating_point_ops if trainer._counts_flos() else None
    serve, always = trainer._service()  # a subclass that serves by itself is called at every update
    # Data shorter than one update: the update is done at the epoch's end with what there is.
    short_epochs = length.batches <= accumulation

    resumed = position.random is not None
    for call in events.on_train_begin:
        call(run)
    trainer._clock = time.perf_counter()
    timing.start(run.device)
    if resumed:
        trainer._restore_control()

    epochs = range(position.epoch + position.epoch_ended, length.epochs)
    if resumed and position.epoch_ended and run.control.should_training_stop:
        epochs = range(0)  # it had been told to stop at the end of an epoch
    for epoch in epochs:
        for call in events.on_epoch_begin:
            call(run)
        if epoch != position.epoch or position.epoch_ended:
            if position.random is not None:  # resumed between two epochs
                carry_over(run.train_dataloader, position.data, run.processes)
            position.epoch, position.batch, position.epoch_ended, position.data = epoch, 0, False, None
        batches: Any = EpochIterator(
            run.train_dataloader,
            args=args,
            processes=run.processes,
            epoch=epoch,
            position=position.data,
            split=run.split,
        )
        trainer._past = None  # the memory of `past_index` does not outlive an epoch
        if position.random is not None:
            position.batch = batches.index  # under ignore_data_skip the epoch begins anew
        if args.loss_reduction == "tokens":
            batches = trainer._weigh_by_tokens(batches, position.micro_batches)
        trainer._batches = batches
        if position.random is not None:
            position.random.restore()
            position.random = None
        # A run that had been told to stop when its checkpoint was written has no batch left to train.
        stopped = resumed and (run.control.should_training_stop or run.control.should_epoch_stop)
        resumed = False

        for inputs in () if stopped else batches:
            lap("data")
            if position.batch % accumulation == 0:
                for call in events.on_step_begin:
                    call(run)
            position.batch += 1
            position.micro_batches += 1
            last = position.micro_batches % accumulation == 0 or (
                short_epochs and position.batch == length.batches
            )
            run.batch_weight = batches.weight
            run.batch_rows += batches.rows
            for call in events.on_micro_batch:
                call(run, inputs)
            with strategy.micro_batch(last):
                run.loss = loss = training_step(run.model_wrapped, inputs)
            losses.add(loss if batches.weight == 1.0 else loss * batches.weight, state.global_step)
            if count_flos is not None:
                trainer.current_flos += float(count_flos(inputs))
            lap("backward")  # the forward before it has been counted in training_step

            if last:
                for call in events.on_gradients_ready:
                    call(run)
                if run.skip_reason is None:
                    max_norm = args.max_grad_norm  # looked up each time: a callback may change it
                    run.update = strategy.update(max_norm if max_norm and max_norm > 0 else None)
                else:
                    run.update = run.skip_update()
                lap("optimizer")
                state.global_step += 1
                state.epoch = epoch + position.batch / length.batches
                for call in events.on_step_end:
                    call(run)
                control = run.control
                if control.should_log or control.should_evaluate or control.should_save or always:
                    serve(run)
            else:
                for call in events.on_substep_end:
                    call(run)
            lap("other")
            if run.control.should_epoch_stop or run.control.should_training_stop:
                break

        if position.batch == 0:
            logger.warning(
                "The training data gave no batch in epoch %d, so training stops at step %d of %d.",
                epoch,
                state.global_step,
                state.max_steps,
            )
            run.control.should_training_stop = True
        # An epoch that was broken off because training was told to stop goes on when the run is resumed.
        control = run.control
        broken_off = control.should_training_stop and not control.should_epoch_stop
        broken_off = broken_off and position.batch < length.batches and state.global_step < state.max_steps
        position.epoch_ended = not broken_off
        for call in events.on_epoch_end:
            call(run)
        serve(run)
        if run.control.should_training_stop:
            break
    if position.random is not None:
        position.random.restore()  # nothing was left to train
