"""Batches of an evaluation that may be too large for memory, under `auto_find_batch_size`.

Where nobody asked for a smaller batch, errors pass as they are. With several ranks the forward pass of an evaluation
has no collective, so that one which finds no memory can say so after it: all ranks then begin again together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drivetrain.gathering import gather_counts
from drivetrain.memory import BatchTooLarge, give_back, is_out_of_memory

if TYPE_CHECKING:
    from drivetrain.fed_metrics import Feeding


@contextmanager
def fits(trainer: Any, rows: int, feeding: Feeding | None) -> Iterator[None]:
    """The work on one batch. A collective where there are several ranks.

    Args:
        trainer: its arguments and its run are looked at.
        rows: of the batch.
        feeding: the metrics that are fed, if any.

    Raises:
        BatchTooLarge: on every rank, where it did not fit on one of them.
    """
    if not trainer.args.auto_find_batch_size:
        yield
        return
    short = None
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        short = error.with_traceback(None)  # which holds the tensors of what did not fit
    if short is not None:
        give_back()
    if any(gather_counts(int(short is not None), trainer.run.processes)):
        raise BatchTooLarge(rows, feeding.fed if feeding is not None else 0) from short


def fitting(batches: Any, trainer: Any, feeding: Feeding | None) -> Iterator[Any]:
    """The batches; in one process what is too large to be fetched is told as what is too large to be run."""
    batches = iter(batches)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            alone = trainer.run.processes.world_size == 1
            if not (trainer.args.auto_find_batch_size and alone and is_out_of_memory(error)):
                raise
            rows = trainer._eval_batch_size
            raise BatchTooLarge(rows, feeding.fed if feeding is not None else 0) from error
        if batch is None:
            return
        yield batch
