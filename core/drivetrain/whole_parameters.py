"""A strategy in which every process holds every parameter whole: what most strategies begin from.

It serves one process as it is. With several, a subclass says how the model is wrapped, how gradients or
weights are brought together, and how tensors are collected.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drivetrain.checkpoint import optimizer_state_in, optimizer_state_out, set_weights
from drivetrain.clipping import clip_grad_norm
from drivetrain.slots import Model, OptimizerFactory, Prepared, SchedulerFactory, TrainState, Update

if TYPE_CHECKING:
    from drivetrain.run import Run

# Entered at every micro-batch; one object serves all.
_NOTHING: AbstractContextManager[None] = nullcontext()


def share_of_update(loss: Tensor, weight: float, accumulation: int, scaler: Any) -> Tensor:
    """What of a micro-batch's loss goes into the backward pass, so that every row of the update counts the same.

    Args:
        loss: the mean over the micro-batch's rows.
        weight: `run.batch_weight`.
        accumulation: micro-batches of the update.
        scaler: the loss scaler, or None.
    """
    if weight != 1.0:
        loss = loss * weight
    if accumulation > 1:
        loss = loss / accumulation
    return loss if scaler is None else scaler.scale(loss)


class WholeParameters:
    """The strategy of one process, and a base for others; its methods are those of `drivetrain.slots.Strategy`.

    Args:
        run: the run that it serves.

    Attributes:
        model: the bare model.
        parameters: those that are clipped and cleared.
        optimizer, scheduler: as `prepare` built them.
        scaler: the loss scaler, where the precision has one.
    """

    shows_gradients = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self.model = run.model
        self.parameters: list[Tensor] = []
        self.scaler: torch.amp.GradScaler | None = None

    def setup(self, run: Run) -> None:
        """Nothing to make: there is one process."""

    def model_context(self) -> AbstractContextManager[Any]:
        """The model is built where it is built."""
        return _NOTHING

    def prepare(
        self, model: Model, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """Moves the model to the device, and builds what updates it, unless it is only evaluated."""
        policy = self.run.precision.policy
        if self.run.args.place_model_on_device:
            model.to(self.run.device)
        self.model = model
        if optimizer is None or scheduler is None:
            return Prepared(model, None, None)
        if policy.parameter is not None:
            model.to(policy.parameter)
        wrapped = self.wrap(model)
        self.optimizer = optimizer.build(model)
        self.scheduler = scheduler.build(self.optimizer)
        self.per_evaluation = scheduler.per_evaluation
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # Clipping looks at every parameter of the model, as documented, also at those of no group, frozen as
        # they may be now.
        grouped = {id(p) for p in self.parameters}
        self.parameters += [p for p in model.parameters() if id(p) not in grouped]
        self.accumulation = self.run.accumulation
        if policy.loss_scale is not None:
            self.scaler = torch.amp.GradScaler(self.run.device.type, **policy.loss_scale)
        self.zero_grad()
        return Prepared(wrapped, self.optimizer, self.scheduler)

    def wrap(self, model: Model) -> Model:
        """What is called in place of the model."""
        return model

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """No gradients to synchronise."""
        return _NOTHING

    def backward(self, loss: Tensor) -> None:
        """The backward pass of this micro-batch's share."""
        share_of_update(loss, self.run.batch_weight, self.accumulation, self.scaler).backward()  # type: ignore[no-untyped-call]

    def update(self, max_norm: float | None) -> Update:
        """Unscale, clip, step, schedule, clear."""
        norm, stepped = None, True
        scaler = self.scaler
        if scaler is None:
            if max_norm is not None:
                norm = clip_grad_norm(self.parameters, max_norm)
            self.optimizer.step()
        else:
            scaler.unscale_(self.optimizer)
            if max_norm is not None:
                norm = clip_grad_norm(self.parameters, max_norm)
            before = scaler.get_scale()
            scaler.step(self.optimizer)
            scaler.update()
            stepped = scaler.get_scale() >= before
        if stepped and not self.per_evaluation:
            self.scheduler.step()
        self.zero_grad()
        return Update(norm, stepped)

    def discard(self) -> Update:
        """Drops an update's gradients; a loss scale stays as it is."""
        self.zero_grad()
        return Update(None, stepped=False)

    def zero_grad(self) -> None:
        """Drops every gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def collect(self, tensors: Any) -> Any:
        """One process has them all."""
        return tensors

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state; tensors are those in use, not copies."""
        weights = dict(self.model.state_dict())
        if weights_only:
            return TrainState(weights)
        named = list(self.model.named_parameters())
        states, groups, extra = optimizer_state_out(self.optimizer, named)
        return TrainState(
            weights=weights,
            optimizer=states,
            groups=groups,
            gradients={name: p.grad for name, p in named if p.grad is not None},
            loss_scale=self.scaler.state_dict() if self.scaler is not None else None,
            optimizer_extra=extra,
        )

    def state_in(self, state: TrainState) -> None:
        """Sets weights, and where they are given, optimizer, gradients and loss scale."""
        if state.weights:
            set_weights(self.model, state.weights)
        if not state.groups:
            return
        named = list(self.model.named_parameters())
        optimizer_state_in(self.optimizer, named, state)
        for name, parameter in named:
            gradient = state.gradients.get(name)
            parameter.grad = gradient.to(parameter.device, parameter.dtype) if gradient is not None else None
        if self.scaler is not None and state.loss_scale is not None:
            self.scaler.load_state_dict(state.loss_scale)

    def close(self) -> Model:
        """The model is bare already."""
        return self.model
