"""What all loggers share: the first process alone speaks, from a thread, and a failure neither ends nor slows a run."""

from __future__ import annotations

import contextvars
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from drivetrain.checkpoint import write_model
from drivetrain.errors import checkpoint_of
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.logger.facts import Facts, Row, facts_of, is_number, plain
from drivetrain_plugins.logger.lane import LAG, Job, Lane, lane_of
from drivetrain_plugins.logger.options import LoggerOptions

logger = logging.getLogger("drivetrain")

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds between two attempts to open a tracker: doubled each time, up to the second."""
BRIEFLY = 0.5
"""Seconds that the run's end waits for a tracker that could not be opened: the last attempt may fail at once."""

_past: dict[str, dict[str, Any]] = {}


class Logger:
    """Base of the loggers. A subclass overrides `load`, `open`, `write` and `close`, and `save` for checkpoints.

    All but `load` are called in a thread of their own, one after another, so they may take their time, hang, and raise:
    training hands over a copy of each row and goes on. What they raise is said in one warning, and the rows that are
    lost are counted at the end. A tracker that cannot be opened is tried again, while its rows wait in the queue.

    Args:
        options: of the plugin.

    Attributes:
        name: the plugin's name.
        state: what a later run needs to go on in the same run of the tracker, made of what JSON holds; kept in
            checkpoints. `open` fills it.
        in_main_thread: whether the tracker works in the main thread alone. Training then waits for each call, for as
            long as it takes.
        error: what ended the run; None where it has ended well, or was told to leave and has a checkpoint.
        is_open: whether `open` has succeeded, and `close` has not been called.
    """

    name = "logger"
    in_main_thread: ClassVar[bool] = False

    def __init__(self, options: LoggerOptions | None = None) -> None:
        self.options = options if options is not None else LoggerOptions()
        self.state: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.failure: BaseException | None = None  # the first one
        self.is_open = False
        self.is_ending = False
        self.retry_at = 0.0
        self.rows = self.failed = self.dropped = 0
        self._broken = False
        self._facts: Facts | None = None
        self._opened: Facts | None = None
        self._lane: Lane | None = None
        self._resumed: dict[str, Any] = {}
        self._pause = FIRST_PAUSE
        self._began = 0.0
        self._strange: set[str] = set()
        self._context = contextvars.copy_context()

    # -- what a subclass says -----------------------------------------------------------------------------

    def load(self) -> None:
        """Imports the tracker's library, in the main thread."""

    def open(self, facts: Facts) -> None:
        """Starts the tracker, or goes on in the run that `facts.joins` tells, and writes the configuration."""
        raise NotImplementedError

    def write(self, row: Row) -> None:
        """Writes a row of the log."""
        raise NotImplementedError

    def save(self, checkpoint: str, step: int) -> None:
        """A checkpoint is whole; it may have been deleted since."""

    def save_model(self, folder: str) -> None:
        """The trained model is in a folder, which is deleted afterwards."""

    def close(self) -> None:
        """Ends the tracker's run. A later evaluation may join it."""

    def keeps_checkpoints(self) -> bool:
        """Whether `save` is to be called."""
        return False

    def keeps_model(self) -> bool:
        """Whether `save_model` is to be called when training ends; on every rank the same."""
        return False

    def numbers(self, values: dict[str, Any]) -> dict[str, float]:
        """Those of the values that are numbers; what is none is named once."""
        for name, value in values.items():
            if not is_number(value) and name not in self._strange:
                self._strange.add(name)
                logger.warning(
                    "Logger %r takes numbers alone, so %r (%s) is not in it.",
                    self.name,
                    name,
                    type(value).__name__,
                )
        return {name: value for name, value in values.items() if is_number(value)}

    # -- what training calls ------------------------------------------------------------------------------

    @hookimpl
    def load_state(self, run: Run, state: dict[str, Any]) -> None:
        """Takes what leads to the tracker's run from the checkpoint."""
        self._resumed = state

    @hookimpl
    def save_state(self, run: Run) -> dict[str, Any] | None:
        """What leads to the tracker's run."""
        return dict(self.state) or None

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Opens the tracker, anew for each training of an object that the user handed in."""
        self.state, self._resumed = self._resumed, {}
        self.error = self.failure = self._facts = None
        self.rows = self.failed = self.dropped = 0
        self._broken, self.is_ending, self.retry_at, self._pause = False, False, 0.0, FIRST_PAUSE
        if run.is_main_process:
            self._begin(run)

    @hookimpl
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """Hands over a copy of the row."""
        if not run.is_main_process:
            return
        self.rows += 1
        if not self._begin(run):
            self.failed += 1
            return
        try:
            row = Row(plain(logs), run.state.global_step, run.state.epoch)
        except Exception as error:  # a value that cannot be copied
            self.failed += 1
            self._say(error)
        else:
            self._do(lambda: self.write(row), is_row=True)

    @hookimpl
    def on_save(self, run: Run, checkpoint: str) -> None:
        """Hands over the checkpoint's place, where the tracker takes checkpoints."""
        if run.is_main_process and self.keeps_checkpoints() and self._begin(run):
            step = run.state.global_step
            self._do(lambda: self.save(checkpoint, step))

    @hookimpl
    def on_evaluate(self, run: Run) -> None:
        """Closes the tracker after an evaluation by itself."""
        if not run.is_training:
            self._end_run()

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Closes the tracker, and waits for that where it has kept up."""
        if self.keeps_model():
            self._hand_over_model(run)
        self._end_run()

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        """Closes the tracker, so that what led to the error is in it."""
        self.error = error if checkpoint_of(error) is None else None
        self._end_run()

    def _hand_over_model(self, run: Run) -> None:
        """Writes the model into a folder of its own, as it is now. A collective where weights are spread."""
        weights = run.strategy.state_out(weights_only=True).weights
        if not (run.is_main_process and self._begin(run)):
            return
        folder = tempfile.TemporaryDirectory(prefix="drivetrain-model-", ignore_cleanup_errors=True)

        def save() -> None:
            with folder:
                self.save_model(folder.name)

        try:
            write_model(
                run.model,
                folder.name,
                weights=weights,
                max_shard_size=run.args.max_shard_size,
                processing_class=run.processing_class,
            )
        except Exception as error:
            folder.cleanup()
            self._say(error)
        else:
            self._do(save)

    def _begin(self, run: Run) -> bool:
        """Whether there is a tracker, or will be; asked for at each event, since an evaluation begins with a row."""
        if self._broken:
            return False
        if self._facts is not None:
            self.is_ending = False
            return True
        try:
            self._facts = facts_of(run, dict(self.state))
            self._context = contextvars.copy_context()
            self.load()
        except Exception as error:
            self._broken = True
            self._say(error)
            return False
        self._began = time.monotonic()
        self._do(lambda: None)  # opens it
        allowed = self.options.open_timeout
        if self._lane is not None and allowed and not self._lane.wait_until_open(self, allowed):
            logger.warning(
                "Logger %r is not open after %g s (open_timeout), and the run goes on; it follows when it can.",
                self.name,
                allowed,
            )
        return True

    def _do(self, work: Callable[[], None], is_row: bool = False) -> None:
        assert self._facts is not None
        job = Job(self, self._facts, work, is_row)
        if self.in_main_thread:
            if not self.is_open and time.monotonic() >= self.retry_at:
                self.try_to_open(self._facts)
            if self.is_open:
                self.try_to(job)
            else:
                self.failed += is_row
                if self.is_ending:
                    self.tell_losses()
            return
        if self._lane is None:
            self._lane = lane_of(self.name)
        self._lane.put(job, self.options.queue_size)

    def end(self) -> None:
        """Has the tracker closed when all that was handed over is written."""
        if self._facts is None or self._broken or self.is_ending:
            return
        self.is_ending = True
        self._do(self._close)

    def _end_run(self) -> None:
        if self._broken:
            self.tell_losses()
        if self._facts is None or self._broken:
            return
        self.end()
        lane = self._lane
        if lane is None:
            return
        allowed = self.options.close_timeout
        if self.is_open:
            allowed = allowed if lane.lag() < LAG else 0.0
        elif self.failure is None:  # it has just begun
            allowed -= time.monotonic() - self._began
        else:
            allowed = min(BRIEFLY, allowed)
        if not lane.wait(self, max(0.0, allowed)):
            left = lane.rows_left(self)
            if left:
                logger.warning(
                    "Logger %r does not keep up: %d rows of the log are still to be written. The run does not wait "
                    "for it; when the process ends it has %g s more (close_timeout).",
                    self.name,
                    left,
                    self.options.close_timeout,
                )

    # -- called where the tracker is, in its thread ---------------------------------------------------------

    def try_to_open(self, told: Facts) -> None:
        """Opens the tracker; a failure puts the next attempt off."""
        # Known now and not before: the training that came earlier may only just have opened its own.
        facts = replace(told, past=_past.get(self.name, {}))
        if told is self._opened:
            facts = replace(facts, resumed=dict(self.state), again=True)
        try:
            self._context.run(self.open, facts)
        except BaseException as error:
            self._say(error)
            self.retry_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self.is_open, self._opened = True, told
            if facts.is_training or self.name not in _past:
                _past[self.name] = self.state

    def try_to(self, job: Job) -> None:
        """Does a job."""
        try:
            self._context.run(job.work)
        except BaseException as error:
            self.failed += job.is_row
            self._say(error)

    def _close(self) -> None:
        try:
            self.close()
        finally:
            self.is_open = False
            self.tell_losses()

    def _say(self, error: BaseException) -> None:
        if self.in_main_thread and not isinstance(error, Exception):
            raise error  # Ctrl-C is the run's
        if self.failure is None:
            self.failure = error
            logger.warning(
                "Logger %r failed, and the run goes on without what it could not write: %s: %s",
                self.name,
                type(error).__name__,
                error,
            )

    def tell_losses(self) -> None:
        """Says how many rows are not in the tracker, and why, if any."""
        why = []
        if self.failed:
            why.append(f"{self.failed} could not be written")
        if self.dropped:
            why.append(
                f"{self.dropped} had no room in its queue (queue_size={self.options.queue_size}) or no time"
            )
        if why:
            logger.warning(
                "Logger %r has lost %d of %d rows of the log: %s.",
                self.name,
                self.failed + self.dropped,
                self.rows,
                " and ".join(why),
            )
