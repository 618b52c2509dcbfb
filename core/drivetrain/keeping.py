"""Checkpoints while a run goes on: the part of the Trainer that has them written and tells of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from drivetrain import resuming, saving
from drivetrain.base import TrainerBase
from drivetrain.errors import CheckpointError
from drivetrain.evaluation_weights import evaluation_weights
from drivetrain.gathering import gather_objects

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


class Keeping(TrainerBase):
    """The part of the Trainer that keeps checkpoints."""

    def _save_checkpoint(self, model: Any, trial: Any, metrics: dict[str, float] | None = None) -> None:
        self._finish_saving(self.run)  # one at a time; and how it went is told before there is another
        with self.run.timing.aside("saving"), self._save_errors():
            saving.save(cast("Trainer", self), self.run, metrics)

    def _end_write(self, run: Run, wait: bool = True) -> None:
        """Ends the write that is under way in a thread, if any. A collective.

        Args:
            run: the run.
            wait: for it; else it is ended only where it is done on every rank.
        """
        writer = self._writer
        if writer is None or writer.under_way is None:
            return
        if wait or all(gather_objects(writer.is_idle(), run.processes)):
            with run.timing.aside("saving"), self._save_errors():
                saving.end_write(run, writer)

    def _tell_saved(self, run: Run, folders: Iterable[str | None]) -> None:
        """Tells the listeners of the checkpoints that are whole.

        Where a thread wrote it, training is some steps on; a listener is shown the checkpoint's step all the same,
        since documented callbacks know its folder by that alone.
        """
        now = run.state.global_step
        for folder in folders:
            if folder is None:
                continue
            if self._disk is not None:
                self._disk.written(folder)
            run.state.global_step = saving.step_of(folder)
            try:
                with evaluation_weights(run):  # for listeners that save the model in their own way
                    for call in run.plan.events.on_save:
                        call(run, folder)
            finally:
                run.state.global_step = now

    @contextmanager
    def _save_errors(self) -> Iterator[None]:
        """A checkpoint that cannot be written ends the run, or is a warning (`on_save_error`)."""
        try:
            yield
        except CheckpointError as error:
            if self.args.on_save_error != "warn":
                raise
            logger.warning("%s The run goes on without this checkpoint (on_save_error='warn').", error)

    def _finish_saving(self, run: Run) -> None:
        """Waits for the checkpoint that is being written, and tells of it."""
        self._end_write(run)
        if self._writer is not None:
            self._tell_saved(run, self._writer.take_saved())

    def _put_best_model_in(self) -> None:
        """Loads the weights of the best checkpoint."""
        folder = self.state.best_model_checkpoint
        assert folder is not None
        logger.info("Loading the best model: %s (%s).", folder, self.state.best_metric)
        resuming.load_weights_into(self.run, folder)
