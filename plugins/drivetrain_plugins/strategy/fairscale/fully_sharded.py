"""FairScale's FullyShardedDataParallel: each rank keeps a flat part of every parameter. Written for CUDA.

Parameters are cut one by one and not laid together first, so that each keeps its name and its group's options.
"""

from __future__ import annotations

import functools
import logging
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import FullyShardedDataParallel
from fairscale.nn.wrap import auto_wrap, default_auto_wrap_policy, enable_wrap
from torch import Tensor

from drivetrain.checkpoint import optimizer_state_in, optimizer_state_out
from drivetrain.collecting import collect
from drivetrain.errors import ConfigurationError
from drivetrain.slots import Model, OptimizerFactory, Prepared, SchedulerFactory, TrainState, Update
from drivetrain.whole_parameters import WholeParameters
from drivetrain_plugins.strategy.fairscale.element_wise import check_element_wise
from drivetrain_plugins.strategy.fairscale.options import FairscaleOptions
from drivetrain_plugins.strategy.fairscale.parts import Parts
from drivetrain_plugins.strategy.fairscale.quiet import root_logger_left_alone
from drivetrain_plugins.strategy.fairscale.rebuild import arguments_of
from drivetrain_plugins.strategy.fairscale.sharded import (
    check_loss_scale,
    loss_scaler,
    needs_several_processes,
)

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

# What FairScale leaves on a parameter.
_MARKS = (
    "_is_sharded",
    "_orig_size",
    "_fp32_shard",
    "_fp16_shard",
    "_full_param_padded",
    "_saved_grad_shard",
    "_cpu_grad",
    "_shard_bwd_hook",
)


class FullyShardedModel(FullyShardedDataParallel):  # type: ignore[misc]
    """FairScale's, of which torch.compile compiles the model alone, not what the engine does around it."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what each unit wraps."""
        for unit in self.modules():
            if isinstance(unit, FullyShardedModel):
                unit.module.module.compile(*args, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """As the engine's."""
        return super().forward(*inputs, **kwargs)


class FullyShardedStrategy(WholeParameters):
    """`sharded_ddp="zero_dp_2"` or `"zero_dp_3"`, with `offload` and `auto_wrap`.

    Args:
        run: the run.
        options: the strategy's options.
        words: those of `sharded_ddp`.
    """

    shows_gradients = False

    def __init__(self, run: Run, options: FairscaleOptions, words: list[str]) -> None:
        super().__init__(run)
        self.options = options
        self.reshard = "zero_dp_3" in words
        self.offload = "offload" in words
        self.auto_wrap = "auto_wrap" in words
        self.wrapped: Any = None
        self.pending = False
        self._error_before: BaseException | None = None

    def setup(self, run: Run) -> None:
        """Checks that there is a process group, and that the precision can be.

        Raises:
            ConfigurationError: the script was not started by a launcher; weights or offloaded gradients in half.
        """
        needs_several_processes()
        check_loss_scale(run)
        self._error_before = sys.exc_info()[1]
        policy = run.precision.policy
        if policy.loss_scale is not None and self.offload:
            raise ConfigurationError(
                f"Precision {policy.name!r} cannot go with sharded_ddp='offload': FairScale's loss scaler does not "
                "bring together the overflows of gradients on the CPU; use bf16=True, or leave offload out."
            )
        if policy.parameter not in (None, torch.float32):
            raise ConfigurationError(
                f"Precision {policy.name!r} keeps weights in {policy.parameter}, and FairScale's FSDP keeps them in "
                "float32: use bf16=True, or fsdp='full_shard'."
            )

    def prepare(
        self, model: Model, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """Cuts the parameters, and builds the optimizer over the parts; bare where nothing is trained.

        Raises:
            ConfigurationError: the model or the optimizer cannot be cut.
        """
        trained = any(parameter.requires_grad for parameter in model.parameters())
        if optimizer is None or scheduler is None or not trained:
            return super().prepare(model, optimizer, scheduler)
        self.model = model
        _all_float32(model)
        finished = optimizer.finished
        if finished is not None:
            groups = finished.param_groups
            check_element_wise(type(finished), arguments_of(finished), groups)
        else:
            groups = optimizer.groups(model) if optimizer.groups else [{"params": list(model.parameters())}]
            check_element_wise(optimizer.cls, optimizer.kwargs, groups)
        self.parameters = list(model.parameters())
        self.zero_grad()
        _same_everywhere(model, self.run.device)
        if not self.offload:
            model.to(self.run.device)
        self.parts = Parts(model, self.run.device)
        self._children = [
            (parent, name, child) for parent in model.modules() for name, child in parent.named_children()
        ]
        with root_logger_left_alone():
            self.wrapped = self._wrap(model)
        if finished is not None:
            self._cut_state(finished)
        self.optimizer = finished if finished is not None else optimizer.cls(groups, **optimizer.kwargs)
        self.scheduler = scheduler.build(self.optimizer)
        self.per_evaluation = scheduler.per_evaluation
        self.accumulation = self.run.accumulation
        self.scaler = loss_scaler(self.run)
        return Prepared(self.wrapped, self.optimizer, self.scheduler)

    def _wrap(self, model: Model) -> Any:
        settings = {
            "reshard_after_forward": self.reshard,
            "flatten_parameters": False,
            "move_params_to_cpu": self.offload,
            "bucket_cap_mb": self.options.bucket_cap_mb,
            "compute_device": self.run.device,
        }
        wrapped: Any = model
        if self.auto_wrap:
            policy = functools.partial(default_auto_wrap_policy, min_num_params=self.options.min_num_params)
            with enable_wrap(policy, wrapper_cls=FullyShardedModel, **settings):
                wrapped = auto_wrap(model)
        if not isinstance(wrapped, FullyShardedDataParallel):
            wrapped = FullyShardedModel(wrapped, **settings)
        self.wrapped = wrapped
        try:
            self._no_tie_between_units()
        except ConfigurationError:  # on every rank alike, so that the model can be put together again
            self._take_off(together=True)
            raise
        return wrapped

    def _units(self) -> list[Any]:
        return [module for module in self.wrapped.modules() if isinstance(module, FullyShardedDataParallel)]

    def _no_tie_between_units(self) -> None:
        names = {id(parameter): name for name, parameter in self.parts.named}
        for unit in self._units():
            own = {id(parameter) for parameter in unit.params}
            inner = [
                found
                for found in unit.modules()
                if found is not unit and isinstance(found, FullyShardedDataParallel)
            ]
            nested = {id(module) for other in inner for module in other.modules()}
            for module in unit.modules():
                if id(module) in nested:
                    continue
                for parameter in module.parameters(recurse=False):
                    if id(parameter) not in own:
                        raise ConfigurationError(
                            f"sharded_ddp='auto_wrap' would cut apart the tied parameter {names[id(parameter)]!r}, "
                            "which FairScale's FSDP cannot share between two wrapped modules: leave auto_wrap out, or "
                            "raise the option min_num_params."
                        )

    def _cut_state(self, finished: torch.optim.Optimizer) -> None:
        """The state that a finished optimizer has already, as parts; that of an earlier train() is."""
        for _, parameter in self.parts.named:
            entry = finished.state.get(parameter, {})
            for key, value in entry.items():
                if isinstance(value, Tensor) and value.dim() and not self.parts.is_part(value, parameter):
                    entry[key] = self.parts.cut(value, parameter)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced only at the last micro-batch."""
        self.pending = True
        if last or self.wrapped is None:
            return super().micro_batch(last)
        context: AbstractContextManager[Any] = self.wrapped.no_sync()
        return context

    def update(self, max_norm: float | None) -> Update:
        """Unscale, clip over all parts, step, schedule, clear."""
        if self.wrapped is None:
            return super().update(max_norm)
        norm, stepped, scaler = None, True, self.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if max_norm is not None:
            norm = self.wrapped.clip_grad_norm_(max_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            before = scaler.get_scale()
            scaler.step(self.optimizer)
            scaler.update()
            stepped = scaler.get_scale() >= before
        if stepped and not self.per_evaluation:
            self.scheduler.step()
        self.zero_grad()
        self.pending = False
        return Update(norm, stepped)

    def discard(self) -> Update:
        """Drops an update's gradients."""
        self.pending = False
        return super().discard()

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state, whole where it is written; gradients of an unfinished accumulation are averaged."""
        if self.wrapped is None:
            return super().state_out(weights_only)
        weights = self.parts.weights(self.run.keeps_state)
        if weights_only:
            return TrainState(weights)
        states, groups, extra = optimizer_state_out(self.optimizer, self.parts.named)
        whole: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parts.named:
            for key, value in states.get(name, {}).items():
                if isinstance(value, Tensor) and value.dim():
                    joined = self.parts.join(value, parameter)
                    value = joined.to("cpu") if self.run.keeps_state else None
                whole.setdefault(name, {})[key] = value
        return TrainState(
            weights=weights,
            optimizer=whole,
            groups=groups,
            gradients=self._gradients() if self.pending else {},
            loss_scale=self.scaler.state_dict() if self.scaler is not None else None,
            optimizer_extra=extra,
        )

    def _gradients(self) -> dict[str, Tensor]:
        """Without a reduction yet, each rank has its own gradients, whole."""
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.parts.named:
            if parameter.requires_grad:
                shape = self.parts.shapes[id(parameter)]
                here = parameter.grad
                gradient = torch.zeros(shape, device=self.run.device) if here is None else here.clone()
                dist.all_reduce(gradient)
                if gradient.any():  # zeros are of a parameter that was not used
                    gradients[name] = (gradient / dist.get_world_size()).to("cpu")
        return gradients

    def state_in(self, state: TrainState) -> None:
        """Sets this rank's parts of the weights, and where they are given, of optimizer and gradients.

        Raises:
            CheckpointError: the state is of another model, or of other groups.
        """
        if self.wrapped is None:
            super().state_in(state)
            return
        with torch.no_grad():
            if state.weights:
                self.parts.set_weights(state.weights)
                for unit in self._units():
                    if unit._is_root is not None:  # whole parameters may be there from a forward pass before
                        unit._free_full_params()
                        unit._use_fp32_param_shard()
            if not state.groups:
                return
            optimizer_state_in(self.optimizer, self.parts.named, self._cut(state))
            self.zero_grad()
            for name, parameter in self.parts.named:
                if name in state.gradients:
                    # A gradient must have its parameter's shape when it is set, and here it is the whole one's.
                    whole, part = state.gradients[name].to(self.run.device, copy=True), parameter.data
                    parameter.data = whole
                    parameter.grad = whole.clone()
                    parameter.data = part
            self.pending = bool(state.gradients)
        if self.scaler is not None and state.loss_scale is not None:
            self.scaler.load_state_dict(state.loss_scale)

    def _cut(self, state: TrainState) -> TrainState:
        parameters = dict(self.parts.named)
        optimizer: dict[str, dict[str, Any]] = {}
        for name, entry in state.optimizer.items():
            parameter = parameters.get(name)
            optimizer[name] = {
                key: self.parts.cut(value, parameter)
                if parameter is not None
                and isinstance(value, Tensor)
                and value.shape == self.parts.shapes[id(parameter)]
                and value.dim()
                else value
                for key, value in entry.items()
            }
        return TrainState(
            weights=state.weights,
            optimizer=optimizer,
            groups=state.groups,
            optimizer_extra=state.optimizer_extra,
        )

    def close(self) -> Model:
        """Puts the parameters together and takes FairScale off the model; after a failure leaves them cut."""
        if self.wrapped is None:
            return self.model
        fine = sys.exc_info()[1] in (None, self._error_before)
        if not fine:  # the other ranks may be anywhere, and putting parts together needs them all
            logger.warning(
                "After the failure the model's parameters stay in parts: load a checkpoint to go on."
            )
        self._take_off(together=fine)
        return self.model

    def _take_off(self, together: bool) -> None:
        """Takes FairScale off; `together`, a collective, makes the parameters whole again."""
        for unit in self._units():
            unit.module.module._compiled_call_impl = None
        for parent, name, child in self._children:
            parent._modules[name] = child
        for _, parameter in self.parts.named:
            parameter.grad = None
            if together and hasattr(parameter, "_is_sharded"):
                parameter.data = self.parts.join(self.parts.here(parameter), parameter)
            for mark in _MARKS:
                if hasattr(parameter, mark):
                    if mark == "_shard_bwd_hook":
                        getattr(parameter, mark)[1].remove()
                    delattr(parameter, mark)
        self.wrapped = None


def _all_float32(model: Model) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigurationError(
                f"FairScale's FSDP keeps weights in float32, and {name!r} is {parameter.dtype}: load the model in "
                "float32 and use bf16=True, or fsdp='full_shard'."
            )


def _same_everywhere(model: Model, device: torch.device) -> None:
    """All ranks begin with the first one's parameters and buffers. FairScale's FSDP leaves this to the script."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            sent = tensor.detach().to(device).contiguous()
            dist.broadcast(sent, src=0)
            tensor.copy_(sent)
