"""FairScale's OSS with ShardedDataParallel: each rank keeps and updates its share of the optimizer's state.

Every parameter belongs to one rank. Gradients are reduced to that rank alone; it updates the parameter and
sends it to the others. Weights are whole everywhere, and a parameter's state lies whole on its owner, so that
optimizers whose state is not element by element work too.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale.optim.grad_scaler import ShardedGradScaler
from torch import Tensor

from drivetrain.checkpoint import set_weights
from drivetrain.collecting import collect
from drivetrain.errors import ConfigurationError
from drivetrain.slots import Model, OptimizerFactory, Prepared, SchedulerFactory, TrainState, Update
from drivetrain.whole_parameters import WholeParameters
from drivetrain_plugins.strategy.fairscale.options import FairscaleOptions
from drivetrain_plugins.strategy.fairscale.quiet import root_logger_left_alone
from drivetrain_plugins.strategy.fairscale.rebuild import build_oss, real
from drivetrain_plugins.strategy.fairscale.state import sharded_state_in, sharded_state_out

if TYPE_CHECKING:
    from drivetrain.run import Run


class ShardedModel(ShardedDataParallel):  # type: ignore[misc]
    """ShardedDataParallel that stays as it is during an evaluation.

    FairScale's own takes its hooks off at the first forward pass of an evaluation, and lays its buckets anew at
    the next of the training.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the bare model: the hooks that the engine sets in a forward pass would be lost in a trace."""
        self.module.compile(*args, **kwargs)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """As the engine's; in evaluation the bare model, with the first rank's buffers."""
        if self.training:
            return super().forward(*inputs, **kwargs)
        if self._enable_broadcast_buffers:
            self.sync_buffers(blocking=True)
        return self.module(*inputs, **kwargs)


class ShardedStrategy(WholeParameters):
    """`sharded_ddp="simple"`.

    Attributes:
        sharded: the wrapped model; None where nothing is trained.
    """

    # Only a parameter's owner has the gradient of all ranks.
    shows_gradients = False

    def __init__(self, run: Run, options: FairscaleOptions) -> None:
        super().__init__(run)
        self.options = options
        self.sharded: ShardedModel | None = None
        self.pending = False  # micro-batches whose gradients have not led to an update yet

    def setup(self, run: Run) -> None:
        """Checks that there is a process group, and a device that a loss scale needs.

        Raises:
            ConfigurationError: the script was not started by a launcher; a loss scale without CUDA.
        """
        needs_several_processes()
        check_loss_scale(run)

    def prepare(
        self, model: Model, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """Moves and wraps the model, and shards the optimizer; bare where nothing is trained.

        Raises:
            ConfigurationError: a finished optimizer cannot be built anew, or parameters are of several dtypes.
        """
        trained = any(parameter.requires_grad for parameter in model.parameters())
        if optimizer is None or scheduler is None or not trained:
            return super().prepare(model, optimizer, scheduler)
        policy = self.run.precision.policy
        if self.run.args.place_model_on_device:
            model.to(self.run.device)
        if policy.parameter is not None:
            model.to(policy.parameter)
        self.model = model
        self.parameters = list(model.parameters())
        super().zero_grad()
        with root_logger_left_alone():
            self.oss: Any = build_oss(optimizer, model)
            self.sharded = ShardedModel(
                model,
                self.oss,
                broadcast_buffers=self.options.broadcast_buffers,
                reduce_buffer_size=self.options.reduce_buffer_size,
                reduce_fp16=self.options.reduce_fp16,
            )
        self.optimizer = self.oss
        self.scheduler = scheduler.build(self.oss)
        self.per_evaluation = scheduler.per_evaluation
        self.accumulation = self.run.accumulation
        self.scaler = loss_scaler(self.run)
        self._survey(model)
        return Prepared(self.sharded, self.oss, self.scheduler)

    def _survey(self, model: Model) -> None:
        """Notes who owns what."""
        grouped = {id(p) for group in self.oss.param_groups for p in group["params"]}
        self.owned = [p for group in self.oss.optim.param_groups for p in real(group["params"])]
        self._own = {id(p) for p in self.owned}
        # FairScale does not see parameters of no group; clipping does.
        self.outside = [p for p in model.parameters() if id(p) not in grouped and p.requires_grad]
        self.touched: set[int] = set()
        self._handles: list[Any] = []
        if self.options.find_unused_parameters:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    note: Any = parameter.register_post_accumulate_grad_hook
                    self._handles.append(note(lambda found: self.touched.add(id(found))))

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced only at the last micro-batch."""
        if self.sharded is None:
            return super().micro_batch(last)
        self.pending = True
        late = self.options.find_unused_parameters
        if late and last and self.options.broadcast_buffers:
            self.sharded.sync_buffers(blocking=True)  # as its forward pass does outside no_sync
        context: AbstractContextManager[Any] = (
            self.sharded.no_sync() if late or not last else super().micro_batch(last)
        )
        return context

    def update(self, max_norm: float | None) -> Update:
        """Unscale, clip over all shards, step the own shard, send it to the others, schedule, clear."""
        if self.sharded is None:
            return super().update(max_norm)
        unused = self._reduce_late() if self.options.find_unused_parameters else self._unused()
        # A parameter that had no part in the loss has no gradient, though its place in a bucket holds zeros:
        # it must not be decayed, nor its averages move.
        aside = [(parameter, parameter.grad) for parameter in unused]
        for parameter, _ in aside:
            parameter.grad = None
        oss, scaler, norm, stepped = self.oss, self.scaler, None, True
        if scaler is not None:
            scaler.unscale_(oss)
        if max_norm is not None:
            norm = self._clip(max_norm)
        if scaler is None:
            oss.step()
        else:
            before = scaler.get_scale()
            scaler.step(oss)
            scaler.update()
            stepped = scaler.get_scale() >= before
        if stepped and not self.per_evaluation:
            self.scheduler.step()
        for parameter, gradient in aside:
            parameter.grad = gradient
        self.zero_grad()
        return Update(norm, stepped)

    def _unused(self) -> list[Tensor]:
        """Own parameters that no rank used: this one did not, and the sum of the others' gradients is zero."""
        assert self.sharded is not None
        unused: list[Tensor] = []
        if not any(self.sharded._grad_to_be_reduced):
            return unused
        for index, parameter in enumerate(self.sharded._trainable_params):
            if not self.sharded._grad_to_be_reduced[index] or parameter.grad is None:
                continue
            bucketed = self.sharded._use_buckets and self.sharded._should_bucket_grad[index]
            if not bucketed:
                name = next(n for n, p in self.model.named_parameters() if p is parameter)
                raise ConfigurationError(
                    f"The last micro-batch of an update did not use the parameter {name!r}, whose gradient FairScale "
                    "then does not reduce: set the option find_unused_parameters=True of the strategy 'fairscale'."
                )
            if id(parameter) in self._own and not parameter.grad.any():
                unused.append(parameter)
        return unused

    def _reduce_late(self) -> list[Tensor]:
        """Reduces the gradients in FairScale's order of parameters; gives the own ones that no rank used."""
        sharded = self.sharded
        assert sharded is not None
        trained: list[Tensor] = sharded._trainable_params
        used = torch.tensor(
            [id(p) in self.touched for p in trained], dtype=torch.uint8, device=self.run.device
        )
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sharded.reduce()
        flags = used.tolist()
        return [p for p, flag in zip(trained, flags, strict=True) if not flag and id(p) in self._own]

    def _clip(self, max_norm: float) -> Tensor:
        counted = list(self.owned)
        for parameter in self.outside:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            dist.all_reduce(gradient)
            parameter.grad = gradient / dist.get_world_size()
        if self.run.processes.rank == 0:
            counted += self.outside
        # By itself it would look for ever at those that had a gradient at the first update.
        norm: Tensor = self.oss.clip_grad_norm(max_norm, filter_params_fn=lambda _: counted)
        return norm

    def zero_grad(self) -> None:
        """Clears the gradients; those that are views of a bucket stay views.

        FairScale's own would clear the views one by one, and their buckets once more.
        """
        sharded = self.sharded
        if sharded is None:
            super().zero_grad()
            return
        bucketed = sharded._should_bucket_grad or [False] * len(sharded._trainable_params)
        for parameter, is_view in zip(sharded._trainable_params, bucketed, strict=True):
            if not is_view:
                parameter.grad = None
        for bucket in sharded._bucket_list:
            bucket.zero()
        for parameter in self.outside:
            parameter.grad = None
        self.touched.clear()
        self.pending = False

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state, whole where it is written; gradients of an unfinished accumulation are averaged."""
        if self.sharded is None:
            return super().state_out(weights_only)
        weights = dict(self.model.state_dict())
        if weights_only:
            return TrainState(weights)
        named = list(self.model.named_parameters())
        receivers = self.run.writers or (0,)
        states, groups, extra = sharded_state_out(self.oss, named, self.run.device, receivers)
        return TrainState(
            weights=weights,
            optimizer=states,
            groups=groups,
            gradients=self._gradients(named) if self.pending else {},
            loss_scale=self.scaler.state_dict() if self.scaler is not None else None,
            optimizer_extra=extra,
        )

    def _gradients(self, named: list[tuple[str, torch.nn.Parameter]]) -> dict[str, Tensor]:
        gradients = {}
        for name, parameter in named:
            if parameter.requires_grad:
                gradient = (
                    parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter)
                )
                dist.all_reduce(gradient)
                if gradient.any():  # zeros are of a parameter that was not used
                    gradients[name] = gradient / dist.get_world_size()
        return gradients

    def state_in(self, state: TrainState) -> None:
        """Sets weights, and where they are given, this rank's share of the optimizer, gradients and loss scale.

        Raises:
            CheckpointError: the state is of other parameters or groups.
        """
        if self.sharded is None:
            super().state_in(state)
            return
        if state.weights:
            set_weights(self.model, state.weights)
        if not state.groups:
            return
        named = list(self.model.named_parameters())
        sharded_state_in(self.oss, named, state)
        self.zero_grad()
        for name, parameter in named:
            gradient = state.gradients.get(name)
            if gradient is None:
                continue
            if parameter.grad is None:  # as before the first step, where buckets take over what is there
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(gradient)
            self.touched.add(id(parameter))
        self.pending = bool(state.gradients)
        if self.scaler is not None and state.loss_scale is not None:
            self.scaler.load_state_dict(state.loss_scale)

    def close(self) -> Model:
        """Takes hooks and views off the model. No collective: it may follow a failure."""
        if self.sharded is not None:
            for handle in (*self.sharded._grad_hooks, *self._handles):
                handle.remove()
            self.sharded._grad_hooks.clear()
            for parameter in self.model.parameters():
                parameter.grad = None
                parameter.data = parameter.data.clone()
            self.oss.buckets.clear()
            self.model._compiled_call_impl = None
            self.sharded = None
        return self.model


def check_loss_scale(run: Run) -> None:
    """Checks that losses can be scaled, where the precision asks for it: fairscale's scaler does nothing without CUDA.

    Raises:
        ConfigurationError: they cannot.
    """
    policy = run.precision.policy
    if policy.loss_scale is not None and run.device.type != "cuda":
        raise ConfigurationError(
            f"Strategy 'fairscale' scales losses on CUDA devices alone, and the precision {policy.name!r} asks for a "
            "loss_scale: choose another precision or strategy."
        )


def loss_scaler(run: Run) -> Any:
    """The scaler that the precision asks for, or None."""
    policy = run.precision.policy
    if policy.loss_scale is None:
        return None
    with warnings.catch_warnings():  # of a torch that has moved the class this one is built on
        warnings.simplefilter("ignore", FutureWarning)
        return ShardedGradScaler(**policy.loss_scale)


def needs_several_processes() -> None:
    """Checks that there is a process group.

    Raises:
        ConfigurationError: the script was not started by a launcher.
    """
    if not dist.is_initialized():
        raise ConfigurationError(
            "Strategy 'fairscale' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
        )
