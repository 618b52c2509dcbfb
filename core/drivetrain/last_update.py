"""After an error: a checkpoint of the last update (`save_on_exception`).

An error leaves a step half done: gradients of some micro-batches, random numbers drawn, rows fetched, running means
moved. What went before the step is noted after each update, when all that was due after it is done, and is put into the
checkpoint in the place of what is there now. Weights and the optimizer's state are too large for a copy each time: only
an update changes them, and an error in the middle of one leaves nothing that could be saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from drivetrain import saving
from drivetrain.checkpoint import CheckpointContents, RandomState
from drivetrain.errors import checkpoint_of
from drivetrain.host_copies import HostCopies
from drivetrain.listener_states import callback_states, plugin_states
from drivetrain.memory import is_out_of_memory
from drivetrain.whole_parameters import WholeParameters

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


class LastUpdate:
    """Notes where training is after each update, and writes a checkpoint of that after an error.

    Args:
        trainer: whose run it is, in one process.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._step: int | None = None  # of the update that is noted; -1 while what is due after one is done
        self._noted: dict[str, Any] = {}  # by the names of CheckpointContents
        self._versions: list[int] = []
        self._buffers: list[torch.Tensor] = []
        self._copies = HostCopies(pin=False)
        self._loss_sum: torch.Tensor | None = None

    def after(self, serve: Callable[[Run], None]) -> Callable[[Run], None]:
        """What the loop calls for what is due: `serve`, and the note."""

        def serve_and_note(run: Run) -> None:
            self._step = -1
            serve(run)
            if self.trainer._position.micro_batches % run.accumulation == 0:
                self._note(run)  # else there are gradients, which the next micro-batch changes

        return serve_and_note

    def _note(self, run: Run) -> None:
        trainer, losses = self.trainer, self.trainer._losses
        noted = {
            "position": saving.position_of(trainer, run),
            "plugin_states": plugin_states(run),
            "callback_states": callback_states(trainer),
        }
        self._noted = self._copies.of(noted)
        self._noted["random"] = RandomState.capture()
        # Its sum stays on the device, for which nobody is to wait.
        self._noted["loss"] = {"total": losses.total, "last_logged": losses.last_logged}
        self._loss_sum = losses.sum.detach().reshape(1).clone()
        self._versions = [parameter._version for parameter in run.model.parameters()]
        self._buffers = [buffer.detach().clone() for buffer in run.model.buffers()]
        self._step = run.state.global_step

    def save(self, run: Run, error: BaseException) -> None:
        """Writes the checkpoint, or says why there is none. Raises nothing: the error itself is what ends the run."""
        trainer, args = self.trainer, self.trainer.args
        if checkpoint_of(error) is not None or (args.auto_find_batch_size and is_out_of_memory(error)):
            return
        step = run.state.global_step
        folder = saving.place_of(trainer, step)
        try:
            trainer._finish_saving(run)
            if trainer._preemption is not None and trainer._preemption.saved == folder:
                logger.warning("The checkpoint of the last update is written already: %s.", folder)
                return
            if (why := self._spoilt(run, error)) is not None:
                logger.warning(
                    "save_on_exception: no checkpoint of step %d is written, because %s. Go on from an earlier one.",
                    step,
                    why,
                )
                return
            with torch.no_grad():
                for buffer, noted in zip(run.model.buffers(), self._buffers, strict=True):
                    buffer.copy_(noted)
            writer, trainer._writer = trainer._writer, None  # nothing goes on meanwhile
            try:
                saving.save(trainer, run, None, self._put_back)
            finally:
                trainer._writer = writer
            trainer._tell_saved(run, [folder])
            logger.warning("save_on_exception: %s, of the last update, is written.", folder)
        except Exception as second:
            logger.warning("save_on_exception: %s could not be written: %s", folder, second)

    def _put_back(self, contents: CheckpointContents) -> None:
        """The contents of a checkpoint as they were after the update; it has left no gradients."""
        for name, value in self._noted.items():
            setattr(contents, name, value)
        assert contents.train_state is not None
        assert self._loss_sum is not None
        assert contents.loss is not None
        contents.loss["sum"] = self._loss_sum.cpu()
        contents.train_state.gradients = {}

    def _spoilt(self, run: Run, error: BaseException) -> str | None:
        """Why what is in memory is not what it was after an update; None where it is."""
        trace: TracebackType | None = error.__traceback__
        update = getattr(type(run.strategy).update, "__code__", None)
        while trace is not None:
            if trace.tb_frame.f_code is update:
                return "the error came in the middle of an update"
            trace = trace.tb_next
        if self._step is None:
            return "no update has been done since training began"
        if self._step != run.state.global_step:
            return "the error came before all that was due after the update was done"
        if self._versions != [parameter._version for parameter in run.model.parameters()]:
            return "the weights have been changed since the update"
        return None


def last_update_of(trainer: Trainer, run: Run) -> LastUpdate | None:
    """What notes the updates of a run, where that was asked for and can be."""
    if not trainer.args.save_on_exception or trainer.args.save_strategy == "no":
        return None
    if run.processes.world_size > 1:
        return None  # said already, as of every argument that is set in vain
    if not isinstance(run.strategy, WholeParameters):
        active = run.plan.slot("strategy")
        logger.warning(
            "save_on_exception=True has no effect under the strategy %r, whose state an error leaves unknown.",
            active.name if active is not None else "?",
        )
        return None
    return LastUpdate(trainer)
