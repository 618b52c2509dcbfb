"""Told to leave: a checkpoint is written after the step under way, and the run ends with a known exit code.

A signal comes to one process, and all must stop after the same step. They tell each other every half second, in a
collective of two numbers a rank: the signal that was heard, and the number of steps until they meet again, of which
rank 0's counts. So everyone always knows which step is the next, and the steps between cost a comparison.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from drivetrain import saving
from drivetrain.errors import Preempted, checkpoint_of
from drivetrain.plugin import hookimpl
from drivetrain.reading_later import read_later
from drivetrain.requeue import requeue
from drivetrain.secret import struck
from drivetrain.signals import Signals

if TYPE_CHECKING:
    from drivetrain.run import Run
    from drivetrain.trainer import Trainer

logger = logging.getLogger("drivetrain")

INTERVAL = 0.5
"""Seconds between two meetings of the ranks."""
_GROWTH = 10  # the first steps of a run are slow, and say little of those after them

_command: str | None = None


@contextmanager
def resumed_by(command: str | None) -> Iterator[None]:
    """Within it a run that leaves says that this command goes on with it; None for a script, whose author knows."""
    global _command
    before, _command = _command, command
    try:
        yield
    finally:
        _command = before


class Preemption:
    """The core's listener that hears signals while `train()` runs; a context around it.

    Args:
        trainer: whose run leaves.

    Attributes:
        told: the signal that all ranks have agreed to leave by; None until then.
        saved: the checkpoint that was written last; None before the first.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.told: signal.Signals | None = None
        self._signals = Signals(says_so=trainer.is_world_process_zero())
        self._alone = trainer.args.world_size == 1
        self.saved: str | None = None
        self._next = 0  # the step after which the ranks meet
        self._every = 1  # steps between two meetings
        self._asked: Callable[[], list[int]] | None = None
        self._met = (0, 0.0)  # the step of the last meeting, and when it was

    def __enter__(self) -> Preemption:
        self._signals.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.restore()
        if checkpoint_of(error) is not None and self.trainer.is_world_process_zero():
            print(error, file=sys.stderr, flush=True)
            if self.told == signal.SIGUSR1 and self.trainer.args.requeue:
                requeue()
        elif error is None and self._signals.first is not None:
            os.kill(os.getpid(), self._signals.first)  # it came when nothing was left to do

    # -- heard of the run -------------------------------------------------------------------------------

    @hookimpl(tryfirst=True)
    def on_train_begin(self, run: Run) -> None:
        """The ranks meet at the first step."""
        self._next, self._every, self._asked = run.state.global_step + 1, 1, None
        self._met = run.state.global_step, time.perf_counter()
        self.saved = None

    @hookimpl(trylast=True)
    def on_step_end(self, run: Run) -> None:
        """Has a checkpoint written and the loop stopped, once a signal was heard by any of them."""
        if self._alone:
            heard = self._signals.first
        elif run.state.global_step >= self._next:
            heard = self._meet(run)
        else:
            return
        if heard is not None:
            self.told = heard
            run.stop_reason = f"{heard.name} told it to"
            run.control.should_save = run.control.should_training_stop = True

    @hookimpl(tryfirst=True)
    def on_save(self, run: Run, checkpoint: str) -> None:
        """Notes what is whole."""
        self.saved = checkpoint

    @hookimpl(tryfirst=True)
    def on_epoch_end(self, run: Run) -> None:
        """Leaves, before the end of an epoch that is not over is told to anybody else."""
        if self.told is not None:
            self.trainer._position.epoch_ended = False
            self._leave(run, self.told)

    def settle(self, run: Run) -> None:
        """Leaves after the last step, by a signal that came too late to be heard in it."""
        heard = self._signals.first if self._alone else _loudest(self._ask(run, 1)())
        if heard is not None:
            self.told = heard
            self._leave(run, heard)

    # -- together ---------------------------------------------------------------------------------------

    def _meet(self, run: Run) -> signal.Signals | None:
        """Tells the others what this rank has heard; gives what any of them had. A collective.

        Where steps are short, what was asked at one meeting is read at the next, when the device is long done with
        it: nothing waits. A step as long as the interval has the time, and leaving should not take another one.
        """
        step, now = run.state.global_step, time.perf_counter()
        before, then = self._met
        wanted = int(INTERVAL * (step - before) / max(now - then, 1e-9))
        asked = self._ask(run, max(1, min(wanted, _GROWTH * self._every)))
        read = asked if self._every == 1 or self._asked is None else self._asked
        self._asked, self._met = asked, (step, now)
        answer = read()
        self._every = answer[1]
        self._next = step + self._every
        return _loudest(answer)

    def _ask(self, run: Run, every: int) -> Callable[[], list[int]]:
        """Sends this rank's two numbers, without waiting for the device; what it returns waits for all of them."""
        mine = torch.tensor([int(self._signals.first or 0), every])
        if run.device.type == "cuda":
            mine = mine.pin_memory().to(run.device, non_blocking=True)
        return read_later(run.strategy.collect(mine.to(run.device)))

    def _leave(self, run: Run, heard: signal.Signals) -> None:
        """Sees to it that a checkpoint of this step is whole, and raises what ends the run. A collective."""
        trainer, state = self.trainer, run.state
        folder = saving.place_of(trainer, state.global_step)
        trainer._finish_saving(run)
        if self.saved != folder:
            # Somebody has cleared the flag, or it failed and was a warning: the run ends here, so it must be.
            saving.save(trainer, run, None)
            if trainer._writer is not None:
                saving.end_write(run, trainer._writer)
                trainer._writer.take_saved()
            trainer._tell_saved(run, [folder])
        run.processes.barrier()
        sentence = f"Stopped by {heard.name} after step {state.global_step} of {state.max_steps}; {folder} is written."
        if _command is not None:
            sentence += f" Go on with: {struck(_command)}"
        else:
            sentence += " To go on, start it again with trainer.train(resume_from_checkpoint=True)."
        if heard != signal.SIGINT:
            raise Preempted(sentence, folder)
        interrupt = KeyboardInterrupt(sentence)
        interrupt.checkpoint = folder  # type: ignore[attr-defined]  # by which `checkpoint_of` knows it
        raise interrupt


def _loudest(answer: list[int]) -> signal.Signals | None:
    """The signal of a meeting; where ranks heard different ones, Ctrl-C comes last."""
    number = max(answer[::2])
    return signal.Signals(number) if number else None
