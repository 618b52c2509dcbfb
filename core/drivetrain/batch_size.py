"""`auto_find_batch_size`: a smaller batch after an out-of-memory error, and a clean start from the same state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from drivetrain.beginning import Beginning, data_state, put_data_back
from drivetrain.checkpoint import RandomState, read_run, written_by_transformers
from drivetrain.checkpoint.transformers_files import read_trainer_state
from drivetrain.elastic import saved_layout
from drivetrain.errors import ConfigurationError, DrivetrainError, OutOfMemoryElsewhere
from drivetrain.memory import BatchTooLarge, give_back, is_out_of_memory
from drivetrain.session import culprits_named

if TYPE_CHECKING:
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

T = TypeVar("T")


def halving(trainer: Trainer, train: Callable[[], T]) -> T:
    """Calls `train`; after each out-of-memory error again with a smaller batch, from the same beginning.

    With several processes one that has run out leaves the process group, by which the others learn of it; all make a
    new group and begin anew together.

    Raises:
        DrivetrainError: one row does not fit either, or the loader does not follow.
        ConfigurationError: the processes cannot begin anew.
    """
    beginning = Beginning(trainer)
    processes = trainer.run.processes
    check_processes(trainer)
    made: int | None = None  # rows of the last attempt's batches
    while True:
        try:
            result = train()
            processes.barrier()  # where one runs out at its very end, all begin anew
            return result
        except BaseException as error:
            here = is_out_of_memory(error)
            if not here and not isinstance(error, OutOfMemoryElsewhere):
                raise
        # Outside of the handler: the error's traceback holds the tensors of the step that failed.
        before, made = made, getattr(trainer.run.train_dataloader, "batch_size", None)
        beginning.let_go()
        give_back()
        if processes.renew is not None:
            processes.renew("" if here else None)
        tried = trainer._train_batch_size // trainer._parts
        with culprits_named(trainer.run):
            _check_followed(before, made, trainer)
            _shrink(trainer, tried)
        found = trainer._train_batch_size // trainer._parts
        logger.warning(
            "Out of memory with %d rows a device%s: starting again with %d%s.",
            tried,
            "" if here else " in another process",
            found,
            f", {trainer._parts} parts a batch" if trainer._parts > 1 else "",
        )
        beginning.put_back()


def check_processes(trainer: Trainer) -> None:
    """Refuses several processes that cannot agree on a batch size.

    Raises:
        ConfigurationError: naming what they need.
    """
    run = trainer.run
    if run.processes.world_size == 1:
        return
    active = run.plan.slot("strategy")
    if active is not None and not active.restarts:
        raise ConfigurationError(
            f"auto_find_batch_size=True is not there for several processes under the strategy {active.name!r}, which "
            "cannot begin anew when one of them stops in the midst of a step: set the batch size by hand, or use the "
            "strategy 'ddp'."
        )
    if run.processes.renew is None:
        raise ConfigurationError(
            "auto_find_batch_size=True needs a process group that drivetrain can make anew: leave "
            "init_process_group out of the script, or set the batch size by hand."
        )


def go_on_with(trainer: Trainer, checkpoint: str | None) -> None:
    """Takes the batch size that the run found before it wrote its checkpoint."""
    if checkpoint is None or not trainer.args.auto_find_batch_size:
        return
    if written_by_transformers(checkpoint):
        found = read_trainer_state(checkpoint).get("train_batch_size")  # from 4.35 on
        if isinstance(found, int) and found > 0:
            trainer._train_batch_size = min(trainer._train_batch_size, found)
        return
    position = read_run(checkpoint)["position"]
    layout = saved_layout(position)
    if layout is None or position["layout"].get("asked") != trainer.args.train_batch_size:
        return  # another size has been asked for since
    trainer._train_batch_size = min(trainer._train_batch_size, layout.batch_size)
    if trainer.args.keep_effective_batch_size and layout.split.world == trainer.run.processes.world_size:
        trainer._parts = max(trainer._parts, layout.split.parts)


def _shrink(trainer: Trainer, tried: int) -> None:
    """Half the rows at once: in a batch of half the size, or in twice as many parts of the same batch."""
    if tried <= 1:
        raise DrivetrainError(
            "auto_find_batch_size: out of memory even with one row a device; use a smaller model, "
            "gradient_checkpointing=True or bf16=True."
        )
    if not trainer.args.keep_effective_batch_size:
        trainer._train_batch_size = tried // 2
        return
    batch = trainer._train_batch_size
    trainer._parts = next(batch // rows for rows in range(tried // 2, 0, -1) if batch % rows == 0)


def _check_followed(before: int | None, made: int | None, trainer: Trainer) -> None:
    """Refuses to try for ever where a loader's batches stay as they are."""
    if before is not None and before == made and not trainer.args.keep_effective_batch_size:
        raise DrivetrainError(
            f"auto_find_batch_size: out of memory, and get_train_dataloader gives batches of {made} rows whatever is "
            "tried: let it make them of self._train_batch_size rows."
        )


def halving_evaluation(trainer: Any, dataset: Any, evaluate: Callable[[], T]) -> T:
    """Calls `evaluate`; where a batch is too large again with half the rows, from the same state.

    Args:
        trainer: whose `_eval_batch_size` is halved, and stays so.
        dataset: what is evaluated; its state is put back, where it tells one.
        evaluate: makes the loader and runs the loop.

    Raises:
        DrivetrainError: one row does not fit either, or the loader does not follow, or metrics cannot be begun anew.
    """
    if not trainer.args.auto_find_batch_size:
        return evaluate()
    check_processes(trainer)
    random, data = RandomState.capture(), data_state(dataset)
    while True:
        try:
            return evaluate()
        except BatchTooLarge as error:
            rows, fed = error.rows, error.fed
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DrivetrainError(
                "Out of memory in an evaluation, beside its batches: in gathering what the processes have, or in "
                "compute_metrics. Keep less by preprocess_logits_for_metrics, or feed the metrics batch by batch with "
                "batch_eval_metrics=True."
            ) from error
        give_back()
        tried = trainer._eval_batch_size
        if rows > tried:
            raise DrivetrainError(
                f"auto_find_batch_size: out of memory, and the evaluation's loader gives batches of {rows} rows "
                "whatever is tried: let it make them of self._eval_batch_size rows."
            )
        if tried <= 1:
            raise DrivetrainError(
                "auto_find_batch_size: out of memory even with one row a device in an evaluation; use a smaller "
                "model, or bf16_full_eval=True."
            )
        if fed and not callable(getattr(trainer.compute_metrics, "reset", None)):
            raise DrivetrainError(
                f"auto_find_batch_size: out of memory after compute_metrics was fed {fed} batches, which it cannot "
                "forget: give it a method reset(), or lower per_device_eval_batch_size."
            )
        trainer._eval_batch_size = tried // 2
        logger.warning(
            "Out of memory with %d rows a device in an evaluation: starting it again with %d.",
            tried,
            tried // 2,
        )
        put_data_back(dataset, data)
        random.restore()
