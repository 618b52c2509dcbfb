"""Writing a checkpoint while training goes on: the copy to host memory waits, the disk does not (`save_async`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from drivetrain import peers
from drivetrain.gathering import gather_objects
from drivetrain.host_copies import HostCopies

if TYPE_CHECKING:
    from drivetrain.checkpoint import Exchange
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

# What the group in which the writing threads meet is called: it outlives the failure of a main thread.
GROUP = "drivetrain-background"


@dataclass(frozen=True, slots=True)
class Write:
    """A checkpoint that is being written.

    Attributes:
        folder: its place.
        best_before: the best metric and its checkpoint, as they were before this one.
    """

    folder: str
    best_before: tuple[float | None, str | None]


class BackgroundWriter:
    """One write at a time, in a thread; on every rank it is begun, and ended, at the same point of the run.

    A rank that has nothing to write only notes that there is a write under way.

    Args:
        run: the run whose checkpoints are written.

    Attributes:
        copies: the memory that states are copied to.
        under_way: what is being written, until its outcome has been told; None between writes.
        saved: folders of the checkpoints that are whole, and of which the listeners have not been told.
    """

    def __init__(self, run: Run) -> None:
        self.copies = HostCopies()
        self.under_way: Write | None = None
        self.saved: list[str] = []
        self._run = run
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._group: Any = None

    def begin(self, write: Write, work: Callable[[], Any] | None) -> None:
        """Begins a write; the one before it has ended, and its outcome been told.

        Args:
            write: which one.
            work: does it, in the thread; None where another rank does.
        """
        assert self.under_way is None
        self.under_way = write
        if work is None:
            return

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="drivetrain-checkpoint")
        self._thread.start()

    def is_idle(self) -> bool:
        """Whether the thread, if this rank has one, is done."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Returns when the thread is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_error(self) -> None:
        """Raises what went wrong in the thread."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def is_writer(self) -> bool:
        """Whether the caller is the thread that writes."""
        return threading.current_thread() is self._thread

    def take_saved(self) -> list[str]:
        """The checkpoints that are whole, once each."""
        saved, self.saved = self.saved, []
        return saved

    def exchange(self) -> Exchange:
        """An exchange between the threads of the ranks. A collective of the main threads, and the same one each time.

        Its group is its own: training goes on in the run's, and two threads must not mix their collectives.
        """
        if self._group is None:
            timeout = timedelta(seconds=self._run.args.ddp_timeout or 1800)
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout, group_desc=GROUP)

        def exchange(value: Any) -> list[Any]:
            with peers.watched():
                return gather_objects(value, self._run.processes, self._group)

        return exchange

    def close(self) -> None:
        """Waits for the thread, also after an error: a checkpoint under way is finished."""
        self.join()
        if self._error is not None and self.under_way is not None:
            logger.warning(
                "%s, under way when the run ended, was not written: %s", self.under_way.folder, self._error
            )
        if self._group is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group(self._group)
