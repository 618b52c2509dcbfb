"""`on_nan_loss="skip"`: an update whose loss or gradients are NaN or infinite is left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain.errors import NonFiniteError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.callback.nan_watch import describe

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class NanSkipOptions:
    """Options of `nan_skip`.

    Attributes:
        most_in_a_row: so many updates skipped one after another end the run: what makes them will not go away.
    """

    most_in_a_row: int = 50

    def __post_init__(self) -> None:
        if self.most_in_a_row < 1:
            raise ValueError(f"most_in_a_row={self.most_in_a_row} must be at least 1.")


class NanSkip:
    """Decides before each update whether it is made, on all ranks alike.

    It cannot be decided later, and without knowing it the scheduler cannot be stepped: each update waits for the
    device once. Weights, optimizer, scheduler and the model's buffers (running means) stay as they are; the update is
    counted, as one that a loss scaler skips. Under a loss scale only the loss is looked at, since gradients that
    overflow are the scaler's to skip.

    Attributes:
        skipped: updates that were skipped, those before a resume among them.
    """

    reads_all_gradients = False  # each rank looks at what it has of them

    def __init__(self, options: NanSkipOptions | None = None) -> None:
        self.options = options or NanSkipOptions()
        self.skipped = 0
        self._in_a_row = 0
        self._loss: torch.Tensor | None = None
        self._buffers: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] = []

    @hookimpl
    def on_stage_begin(self, run: Run, stage: str) -> None:
        """Nothing has been skipped."""
        if stage == "train":
            self.skipped = self._in_a_row = 0
            self._loss = None

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Notes the buffers.

        Raises:
            ConfigurationError: the strategy cannot skip an update.
        """
        run.request_skip("on_nan_loss='skip'; use 'stop' or 'warn'.")
        run.skip_reason = None  # that was only to ask whether it can
        self._buffers = _state_buffers(run.model)
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    @hookimpl
    def on_substep_end(self, run: Run) -> None:
        """Adds the micro-batch's loss to that of the update."""
        assert run.loss is not None
        self._loss = run.loss if self._loss is None else self._loss + run.loss

    @hookimpl(tryfirst=True)
    def on_gradients_ready(self, run: Run) -> None:
        """Reads the loss and the norm of the gradients, and asks to skip where one is not finite.

        Raises:
            NonFiniteError: as many as `most_in_a_row` have been skipped one after another.
        """
        self.on_substep_end(run)
        loss, self._loss = self._loss, None
        assert loss is not None
        numbers = torch.as_tensor(loss, dtype=torch.float32, device=run.device).detach().reshape(1)
        norm = _norm(run) if run.precision.policy.loss_scale is None else torch.zeros(1)
        numbers = torch.cat((numbers, norm.to(numbers).reshape(1)))
        if run.processes.world_size > 1:
            numbers = run.strategy.collect(numbers)
        if bool(torch.isfinite(numbers).all()):
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        what = describe(numbers.tolist(), run.state.global_step + 1, run.processes.world_size)
        if self._in_a_row >= self.options.most_in_a_row:
            raise NonFiniteError(
                f"{what} {self._in_a_row} updates in a row were skipped (on_nan_loss='skip'), which will not end by "
                "itself: debug='underflow_overflow' finds the module where it begins."
            )
        if self._in_a_row & (self._in_a_row - 1) == 0:
            logger.warning("%s It is skipped; skipped so far: %d.", what, self.skipped)
        _copy(self._kept, self._buffers)
        run.request_skip(what)

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        """Notes the buffers, and the number of skipped updates for whoever shows it."""
        _copy(self._buffers, self._kept)
        run.figures["skipped_updates"] = self.skipped

    @hookimpl
    def on_stage_end(self, run: Run, stage: str, metrics: dict[str, float]) -> None:
        """Adds how many were skipped to the metrics of the run."""
        if stage == "train":
            metrics["train_skipped_updates"] = self.skipped

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Says how many were skipped."""
        if self.skipped:
            logger.warning(
                "on_nan_loss='skip': %d of %d updates were skipped.", self.skipped, run.state.global_step
            )

    @hookimpl
    def save_state(self, run: Run) -> dict[str, Any]:
        """The number of skipped updates."""
        return {"skipped": self.skipped}

    @hookimpl
    def load_state(self, run: Run, state: dict[str, Any]) -> None:
        """Counts on from there."""
        self.skipped = int(state["skipped"])


def _state_buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    """The buffers that a checkpoint holds; what a model computes anew, such as a mask, is not among them."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    # Not by their versions: batch normalisation moves its means without changing them.
    if source:
        with torch.no_grad():
            torch._foreach_copy_(target, source)


def _norm(run: Run) -> torch.Tensor:
    """The L2 norm of what this rank holds of the gradients, as clipping computes it."""
    assert run.optimizer is not None
    found = (parameter.grad for group in run.optimizer.param_groups for parameter in group["params"])
    grads = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in found if grad is not None]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for grad in grads:
        if grad.numel():
            by_device.setdefault(grad.device, []).append(grad.coalesce().values() if grad.is_sparse else grad)
    norms = [
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found)).float()).to(run.device)
        for found in by_device.values()
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
