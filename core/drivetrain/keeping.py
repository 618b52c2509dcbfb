"""Checkpoints while a run goes on: the part of the Trainer that has them written and tells of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from drivetrain import resuming, saving
from drivetrain.background import BackgroundWriter
from drivetrain.base import TrainerBase
from drivetrain.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


class Keeping(TrainerBase):
    """The part of the Trainer that keeps checkpoints."""

    def _background_writer(self, run: Run) -> BackgroundWriter:
        if run.processes.world_size > 1:
            raise ConfigurationError(
                "save_async=True is not there yet for several processes: leave it out, or start one process."
            )
        return BackgroundWriter()

    def _save_checkpoint(self, model: Any, trial: Any, metrics: dict[str, float] | None = None) -> None:
        with self._save_errors():
            saving.save(cast("Trainer", self), self.run, metrics)

    def _tell_saved(self, run: Run, folders: Iterable[str | None]) -> None:
        """Tells the listeners of the checkpoints that are whole."""
        for folder in folders:
            for call in run.plan.events.on_save if folder is not None else ():
                call(run, folder)

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
        """Waits for the checkpoint that is being written."""
        if self.writer is not None:
            with self._save_errors():
                self.writer.wait()
            self._tell_saved(run, self.writer.finished())

    def load_best_model(self) -> None:
        """Loads the weights of the best checkpoint."""
        folder = self.state.best_model_checkpoint
        assert folder is not None
        logger.info("Loading the best model: %s (%s).", folder, self.state.best_metric)
        resuming.load_weights_into(self.run, folder)
