"""After an error: a checkpoint of the last update (`save_on_exception`).

An error leaves a step half done: gradients of some micro-batches, random numbers drawn, rows fetched, running means
moved. What went before the step is noted after each update, when all that was due after it is done, and is put into the
checkpoint in the place of what is there now. Weights and the optimizer's state are too large for a copy each time: only
an update changes them, and an error in the middle of one leaves nothing that could be saved.

With several processes the others may be in a collective that the one with the error never enters. It leaves the process
group, upon which their collectives fail, and all meet in a new one: there they compare what each has noted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from drivetrain import peers, saving
from drivetrain.errors import OutOfMemoryElsewhere, ProcessError, checkpoint_of
from drivetrain.gathering import gather_objects
from drivetrain.host_copies import HostCopies
from drivetrain.memory import is_out_of_memory
from drivetrain.rank_part import RankPart, rank_part
from drivetrain.whole_parameters import WholeParameters

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")


class LastUpdate:
    """Notes where training is after each update, and writes a checkpoint of that after an error.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._step: int | None = None  # of the update that is noted; -1 while what is due after one is done
        self._part: RankPart | None = None
        self._versions: list[int] = []
        self._buffers: list[torch.Tensor] = []
        self._copies = HostCopies(pin=False)

    def after(self, serve: Callable[[Run], None]) -> Callable[[Run], None]:
        """What the loop calls for what is due: `serve`, and the note."""

        def serve_and_note(run: Run) -> None:
            self._step = -1
            serve(run)
            if self.trainer._position.micro_batches % run.accumulation == 0:
                self._note(run)  # else there are gradients, which the next micro-batch changes

        return serve_and_note

    def _note(self, run: Run) -> None:
        part = rank_part(self.trainer, run)
        kept = self._copies.of(
            {name: getattr(part, name) for name in ("position", "plugin_states", "callback_states")}
        )
        # The sum stays on the device, for which nobody is to wait.
        self._part = replace(part, loss={**part.loss, "sum": part.loss["sum"].detach().clone()}, **kept)
        self._versions = [parameter._version for parameter in run.model.parameters()]
        self._buffers = [buffer.detach().clone() for buffer in run.model.buffers()]
        self._step = run.state.global_step

    def save(self, run: Run, error: BaseException) -> ProcessError | None:
        """Writes the checkpoint, or says why there is none. Raises nothing: the error itself is what ends the run.

        With several processes a collective of those that are in the loop, each with its own error or that of a
        collective which another one has left.

        Returns:
            What to raise in the place of an error that says only that another process has failed.
        """
        if checkpoint_of(error) is not None:
            return None
        folder = saving.place_of(self.trainer, run.state.global_step)
        followed = _error_of_another(run, error)
        try:
            if self.trainer.args.auto_find_batch_size and (
                is_out_of_memory(error) or isinstance(followed, OutOfMemoryElsewhere)
            ):
                return None
            if run.processes.world_size > 1 and run.processes.renew is not None:
                if followed is not None and not peers.has_left():
                    logger.warning("save_on_exception: no checkpoint is written. %s", followed)
                    return followed
                run.processes.renew(None if followed is not None else peers.told_of(error))
            self.trainer._finish_saving(run)
            if (reason := self._reason_against(run, error, followed is not None, folder)) is None:
                self._write(run, folder)
                reason = f"save_on_exception: {folder}, of the last update, is written."
            if run.is_main_process:
                logger.warning("%s", reason)
        except Exception as second:
            logger.warning("save_on_exception: %s could not be written: %s", folder, second)
        return followed

    def _reason_against(self, run: Run, error: BaseException, follows: bool, folder: str) -> str | None:
        """What is said in place of writing a checkpoint; None where all ranks have noted the same update."""
        preemption, step = self.trainer._preemption, run.state.global_step
        stands = preemption is not None and preemption.saved == folder
        found: list[tuple[int, bool, str | None, bool]] = gather_objects(
            (step, stands, self._spoilt(run, error), follows), run.processes
        )
        if all(stands and other == step for other, stands, *_ in found):
            return f"The checkpoint of the last update is written already: {folder}."
        # One that had to leave a collective comes last: it may not have done what it would have.
        for rank, (step, _, why, _) in sorted(enumerate(found), key=lambda one: one[1][3]):
            if why is not None:
                where = f" in rank {rank}" if len(found) > 1 else ""
                return (
                    f"save_on_exception: no checkpoint of step {step} is written, because {why}{where}. Go on from an "
                    "earlier one."
                )
        if len(steps := {step for step, *_ in found}) > 1:
            return (
                f"save_on_exception: no checkpoint is written, because ranks had done {min(steps)} and {max(steps)} "
                "updates. Go on from an earlier one."
            )
        return None

    def _write(self, run: Run, folder: str) -> None:
        """Writes what was noted. A collective."""
        trainer = self.trainer
        with torch.no_grad():
            for buffer, noted in zip(run.model.buffers(), self._buffers, strict=True):
                buffer.copy_(noted)
        assert isinstance(run.strategy, WholeParameters)
        run.strategy.zero_grad()  # the last update has left no gradients
        writer, trainer._writer = trainer._writer, None  # nothing goes on meanwhile
        try:
            saving.save(trainer, run, None, self._part)
        finally:
            trainer._writer = writer
        trainer._tell_saved(run, [folder])

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
    active, several = run.plan.slot("strategy"), run.processes.world_size > 1
    why = None
    if not isinstance(run.strategy, WholeParameters) or (
        several and active is not None and not active.restarts
    ):
        why = f"under the strategy {active.name if active else '?'!r}, whose state an error leaves unknown"
    elif several and run.processes.renew is None:
        why = "where the script makes the process group, which would have to be made anew: leave that to drivetrain"
    if why is None:
        return LastUpdate(trainer)
    if run.is_main_process:
        logger.warning("save_on_exception=True has no effect %s.", why)
    return None


def _error_of_another(run: Run, error: BaseException) -> ProcessError | None:
    """What an error of a collective says of another process; None where the error is this one's own."""
    if run.processes.world_size == 1 or isinstance(error, (SystemExit, KeyboardInterrupt)):
        return None
    return error if isinstance(error, ProcessError) else peers.lost(error)
