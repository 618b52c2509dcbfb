"""`on_nan_loss="warn"` and `"stop"`: a NaN or infinite loss is said, or ends the run, and no step waits for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from drivetrain.errors import NonFiniteError
from drivetrain.plugin import hookimpl
from drivetrain.reading_later import read_later
from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


class NanWatch:
    """Looks at the loss of every update, and at the norm of its gradients where something has measured it.

    Both stay on the device and are sent to the host after the update; they are read after the next one, when they have
    long been there. Before a checkpoint and at an epoch's end they are read at once, so that no checkpoint holds what
    such an update made. All ranks see the numbers of all, and come to the same end.

    Attributes:
        seen: updates whose loss or norm was not finite, those before a resume among them.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._loss: torch.Tensor | None = None
        self._sent: tuple[int, Callable[[], list[float]]] | None = None

    @hookimpl
    def on_stage_begin(self, run: Run, stage: str) -> None:
        """Nothing has been seen."""
        if stage == "train":
            self.seen, self._loss, self._sent = 0, None, None

    @hookimpl
    def on_substep_end(self, run: Run) -> None:
        """Adds the micro-batch's loss to that of the update."""
        assert run.loss is not None
        self._loss = run.loss if self._loss is None else self._loss + run.loss

    @hookimpl(trylast=True)
    def on_step_end(self, run: Run) -> None:
        """Sends this update's numbers, and reads those of the one before."""
        self.on_substep_end(run)
        self._judge(run)
        self._sent = run.state.global_step, self._send(run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Reads what is sent; the last update of a run is judged here."""
        self._judge(run)

    @hookimpl
    def save_state(self, run: Run) -> dict[str, Any]:
        """Reads what is sent before a checkpoint is written."""
        if run.control.should_save:
            self._judge(run)
        return {"seen": self.seen}

    @hookimpl
    def load_state(self, run: Run, state: dict[str, Any]) -> None:
        """Counts on from there."""
        self.seen = int(state["seen"])

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Says how many there were."""
        if self.seen:
            logger.warning(
                "on_nan_loss: the loss or the norm of the gradients was NaN or infinite in %d of %d updates.",
                self.seen,
                run.state.global_step,
            )

    def _send(self, run: Run) -> Callable[[], list[float]]:
        loss, self._loss = self._loss, None
        assert loss is not None
        numbers = torch.as_tensor(loss, dtype=torch.float32, device=run.device).detach().reshape(1)
        update = run.update
        if update is not None and update.grad_norm is not None and update.stepped:
            # Under a loss scale that is too large the norm is infinite, the scaler skips, and nothing is wrong.
            numbers = torch.cat((numbers, update.grad_norm.detach().to(numbers).reshape(1)))
        else:
            numbers = torch.nn.functional.pad(numbers, (0, 1))
        if run.processes.world_size > 1:
            numbers = run.strategy.collect(numbers)
        return read_later(numbers)

    def _judge(self, run: Run) -> None:
        """Warns or raises, if the numbers that were sent last are not finite; the same on all ranks."""
        if self._sent is None:
            return
        (step, read), self._sent = self._sent, None
        numbers = read()
        if all(map(math.isfinite, numbers)):
            return
        self.seen += 1
        what = describe(numbers, step, run.processes.world_size)
        if run.args.on_nan_loss == "stop":
            raise NonFiniteError(
                f"{what} on_nan_loss='stop' ends the run; the last checkpoint is from before it. "
                "debug='underflow_overflow' finds the module where it began."
            )
        if (
            self.seen & (self.seen - 1) == 0
        ):  # once there is one, there are many: said at the 1st, 2nd, 4th, 8th
            logger.warning(
                "%s%s on_nan_loss='stop' would end the run here.",
                what,
                f" It is the {self.seen}th such update." if self.seen > 3 else "",
            )


def describe(numbers: list[Any], step: int, world_size: int) -> str:
    """A sentence about a loss and a norm of each rank, one of which is not finite."""
    losses, norms = numbers[::2], numbers[1::2]
    bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad:
        norm = next(norm for norm in norms if not math.isfinite(norm))
        return f"The norm of the gradients of update {step} is {norm}, of a finite loss."
    where = f" on rank{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad))}" if world_size > 1 else ""
    return f"The loss of update {step} is {losses[bad[0]]}{where}."
