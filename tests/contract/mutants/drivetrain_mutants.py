"""A strategy of replicas, right by itself, and what authors of strategies get wrong: one fault at a time, by an option."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from drivetrain import (
    OptimizerFactory,
    PluginInfo,
    Prepared,
    Run,
    SchedulerFactory,
    TrainState,
    Update,
    WholeParameters,
    collect,
    hookimpl,
)
from drivetrain.clipping import clip_grad_norm

REPLICA = PluginInfo(
    name="replica",
    kind="strategy",
    summary="Gradients are averaged over the processes.",
    implementation="drivetrain_mutants:ReplicaPlugin",
    options="drivetrain_mutants:ReplicaOptions",
    arguments=("max_grad_norm", "gradient_accumulation_steps", "local_rank", "ddp_backend", "ddp_timeout"),
)


@dataclass(frozen=True)
class ReplicaOptions:
    """Options of the strategy `replica`.

    Attributes:
        fault: what it gets wrong.
    """

    fault: str = ""


class Wrapped(torch.nn.Module):
    """What a wrapper is."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


class Replica(WholeParameters):
    """Every process has the whole model; gradients are averaged at the last micro-batch of an update."""

    def __init__(self, run: Run, fault: str) -> None:
        super().__init__(run)
        self.fault = fault
        self.last = True
        self.world = dist.get_world_size() if dist.is_initialized() else 1

    def prepare(
        self, model: Any, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        if self.fault == "thaws":
            model.requires_grad_(True)
        if self.fault == "unties":
            model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
        if self.fault == "one group" and optimizer is not None:
            optimizer.groups = None
        if self.fault == "other weights" and optimizer is not None:
            with torch.no_grad():
                model.head.bias[0] += 1.0
        prepared = super().prepare(model, optimizer, scheduler)
        if self.fault == "own weights" and self.world > 1 and dist.get_rank() == 1:
            with torch.no_grad():
                model.head.bias[0] += 0.1
        return prepared

    def wrap(self, model: Any) -> Any:
        self.wrapped = Wrapped(model)
        if self.fault == "hooks left":
            model.register_forward_pre_hook(lambda module, args: None)
        if self.fault == "gradient hooks left":
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda p: None)
        return self.wrapped

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        self.last = last
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        weight, accumulation = self.run.batch_weight, self.accumulation
        if self.fault == "rows of the last batch":
            self.run.batch_weight = 1.0
        if self.fault == "accumulation":
            self.accumulation = 1
        if self.fault == "accumulation twice":
            loss = loss / accumulation
        super().backward(loss)
        self.run.batch_weight, self.accumulation = weight, accumulation
        if self.last and self.fault != "late":
            self.bring_together()

    def bring_together(self) -> None:
        if self.fault == "clipped alone":
            self.norm = clip_grad_norm(self.parameters, self.run.args.max_grad_norm)
        if self.world == 1 or self.fault == "unsynchronised":
            return
        for parameter in self.parameters:
            if parameter.grad is None or (self.fault == "biases alone" and parameter.dim() == 1):
                continue
            try:
                dist.all_reduce(parameter.grad)
            except RuntimeError:
                if self.fault == "hangs":
                    time.sleep(1000)
                raise
            if self.fault == "divided twice":
                parameter.grad /= self.world
            if self.fault != "summed":
                parameter.grad /= self.world

    def update(self, max_norm: float | None) -> Update:
        if self.fault == "late":
            self.bring_together()
        if self.fault == "not clipped":
            done = super().update(None)
            return done
        if self.fault == "steps twice":
            self.optimizer.step()
        if self.fault == "no schedule":
            self.per_evaluation = True
        if self.fault == "learns nothing":
            self.zero_grad()
        if self.fault == "clipped while scaled" and self.scaler is not None and max_norm is not None:
            norm = clip_grad_norm(self.parameters, max_norm)
            return Update(norm, super().update(None).stepped)
        done = super().update(max_norm)
        if self.fault == "schedule of what is skipped" and not done.stepped:
            self.scheduler.step()
        if self.fault == "says it stepped":
            return Update(done.grad_norm, True)
        if self.fault == "norm of what is left" and max_norm is not None:
            return Update(done.grad_norm.clamp(max=max_norm), done.stepped)
        if self.fault == "clipped alone":
            return Update(self.norm, done.stepped)
        return done

    def collect(self, tensors: Any) -> Any:
        if self.world == 1:
            return tensors
        if self.fault == "own rows":
            return collect(tensors) if dist.get_rank() == 0 else collect(tensors) and tensors
        made = collect(tensors)
        if self.fault == "order" and isinstance(made, torch.Tensor) and made.dim() > 0:
            return made.flip(0)
        return made

    def state_out(self, weights_only: bool = False) -> TrainState:
        state = super().state_out(weights_only)
        if self.fault == "no gradients":
            state.gradients = {}
        for name, gradient in state.gradients.items():
            averaged = gradient.clone()
            if self.world > 1:
                dist.all_reduce(averaged)
            state.gradients[name] = averaged / self.world
        return state

    def state_in(self, state: TrainState) -> None:
        if self.fault == "no optimizer state":
            state = copy.copy(state)
            state.optimizer = {}
        if self.fault == "no buffers":
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        super().state_in(state)
        if self.fault == "no buffers":
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def close(self) -> Any:
        return self.wrapped if self.fault == "wrapped" and hasattr(self, "wrapped") else super().close()


class ReplicaPlugin:
    """The strategy `replica`."""

    def __init__(self, options: ReplicaOptions) -> None:
        self.options = options

    @hookimpl
    def make_strategy(self, run: Run) -> Replica:
        self.strategy = Replica(run, self.options.fault)
        return self.strategy

    @hookimpl
    def on_epoch_begin(self) -> None:
        if self.options.fault == "drops what is left over":
            self.strategy.zero_grad()
