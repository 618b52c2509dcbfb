"""Writing a checkpoint while training goes on: the copy to host memory waits, the disk does not (`save_async`)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch

from drivetrain.slots import TrainState


class BackgroundWriter:
    """One write at a time, in a thread. What a write raises is raised by the next `submit` or `wait`.

    Attributes:
        done: what finished writes gave, not yet taken by `finished`.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.done: list[Any] = []

    def submit(self, write: Callable[[], Any]) -> None:
        """Begins a write, after the one before it has ended: a disk slower than the saves holds up training."""
        self.wait()

        def run() -> None:
            try:
                result = write()
                self.done.append(result)  # looked up after the write: finished() puts a new list there
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="drivetrain-checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong."""
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def is_writer(self) -> bool:
        """Whether the caller is the thread that writes."""
        return threading.current_thread() is self._thread

    def finished(self) -> list[Any]:
        """What has been written since the last call."""
        done, self.done = self.done, []
        return done


def on_host(state: TrainState) -> TrainState:
    """A copy of a state that training cannot change any more, in host memory."""
    return TrainState(
        weights=copied(state.weights),
        optimizer=copied(state.optimizer),
        groups=copied(state.groups),
        gradients=copied(state.gradients),
        loss_scale=copied(state.loss_scale),
        optimizer_extra=copied(state.optimizer_extra),
    )


def copied(value: Any) -> Any:
    """A deep copy whose tensors are in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(found) for key, found in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(copied(found) for found in value)
    return copy.deepcopy(value)
