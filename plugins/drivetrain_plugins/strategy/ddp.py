"""PyTorch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from drivetrain.collecting import average, collect
from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.slots import Model, TrainState, Update
from drivetrain.whole_parameters import WholeParameters
from drivetrain_plugins.strategy.ddp_hooks import check_hook, register_hook

if TYPE_CHECKING:
    from drivetrain.run import Run


@dataclass(frozen=True)
class DDPOptions:
    """Options of the strategy `ddp`, as `plugins={"ddp": {"static_graph": True}}`.

    Attributes:
        static_graph: the model uses the same parameters at every step; faster with activation checkpointing.
        gradient_as_bucket_view: gradients are views of the communication buckets; saves a copy of them.
        init_sync: at the beginning all ranks take the first one's weights, and their shapes are compared.
        sync_batch_norm: statistics of batch normalisation are taken over all ranks; CUDA alone.
        comm_hook: how gradients are brought together: fp16_compress, bf16_compress, powerSGD,
            or "module:function" of your own.
        comm_hook_options: those of PowerSGD; a function of your own gets them as its first argument.
    """

    static_graph: bool = False
    gradient_as_bucket_view: bool = False
    init_sync: bool = True
    sync_batch_norm: bool = False
    comm_hook: str = ""
    comm_hook_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_hook(self.comm_hook, self.comm_hook_options)


class _Unused:
    """A micro-batch, in which torch's word on unused parameters becomes one sentence with the cure."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError) and "find_unused_parameters" in str(error):
            raise ConfigurationError(
                "Some parameters had no part in the loss of a micro-batch, which DDP was told not to look for: set "
                "ddp_find_unused_parameters=True."
            ) from error


_UNUSED = _Unused()


class _BuffersFirst(DistributedDataParallel):
    """Takes rank 0's buffers when an evaluation begins, in place of in its first forward pass."""

    def train(self, mode: bool = True) -> _BuffersFirst:
        """Into evaluation, or back; where there are buffers a collective."""
        begins = self.training and not mode
        super().train(mode)  # type: ignore[no-untyped-call]
        if begins and self.will_sync_module_buffers():  # type: ignore[no-untyped-call]
            self._sync_buffers()  # type: ignore[no-untyped-call]
            self.require_forward_param_sync = False
        return self


class DDPStrategy(WholeParameters):
    """A replica on every process; gradients are averaged at the last micro-batch of an update."""

    def __init__(self, run: Run, options: DDPOptions) -> None:
        super().__init__(run)
        self.options = options
        self.ddp: DistributedDataParallel | None = None
        self._batch_norms: list[tuple[Model, str, Model]] = []

    def setup(self, run: Run) -> None:
        """Checks that there is a process group, and a device that can do what the options ask.

        Raises:
            ConfigurationError: the script was not started by a launcher; batch normalisation over all ranks on a CPU.
        """
        if not dist.is_initialized():
            raise ConfigurationError(
                "Strategy 'ddp' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
            )
        if self.options.sync_batch_norm and run.device.type != "cuda":
            raise ConfigurationError(
                "sync_batch_norm of the strategy 'ddp' needs CUDA devices, and this run is on "
                f"{str(run.device.type).upper()}: leave it out."
            )

    def wrap(self, model: Model) -> Model:
        """The model in DistributedDataParallel; bare where nothing is trained."""
        args = self.run.args
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        extra: dict[str, Any] = {}
        if args.ddp_bucket_cap_mb is not None:
            extra["bucket_cap_mb"] = args.ddp_bucket_cap_mb
        if args.ddp_broadcast_buffers is not None:
            extra["broadcast_buffers"] = args.ddp_broadcast_buffers
        if self.options.sync_batch_norm:
            self._batch_norms = sync_batch_norms(model)
        # A rank that finds no memory for a batch of an evaluation must not leave the others in a broadcast.
        kind = _BuffersFirst if args.auto_find_batch_size else DistributedDataParallel
        self.ddp = kind(
            model,
            device_ids=[self.run.device.index] if self.run.device.type == "cuda" else None,
            find_unused_parameters=find_unused(args, model),
            static_graph=self.options.static_graph,
            gradient_as_bucket_view=self.options.gradient_as_bucket_view,
            init_sync=self.options.init_sync,
            **extra,
        )
        reduce = self.run.precision.policy.reduce
        register_hook(self.ddp, self.options.comm_hook, self.options.comm_hook_options, reduce)
        # DDP studies a static graph in its first backward pass, which it must be allowed to synchronise. An
        # average of averages is the average, so the first update may be synchronised at every micro-batch.
        self._studying = self.options.static_graph
        return self.ddp

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged only at the last micro-batch."""
        if last or self.ddp is None or self._studying:
            return _UNUSED
        context: AbstractContextManager[Any] = self.ddp.no_sync()
        return context

    def update(self, max_norm: float | None) -> Update:
        """Unscale, clip, step, schedule, clear."""
        self._studying = False
        return super().update(max_norm)

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state; the gradients of an unfinished accumulation are averaged over the ranks."""
        state = super().state_out(weights_only)
        if not weights_only:
            state.gradients = average(state.gradients, self.run.device)
        return state

    def close(self) -> Model:
        """Takes DDP's hooks off the parameters, and puts batch normalisation back as it was."""
        if self.ddp is not None:
            self.ddp._remove_autograd_hooks()  # type: ignore[no-untyped-call]
            self.ddp = None
            for parent, name, module in self._batch_norms:
                parent._modules[name] = module
            if self.options.gradient_as_bucket_view:
                self.zero_grad()  # no views of buckets that are gone
        return super().close()


def sync_batch_norms(model: Model) -> list[tuple[Model, str, Model]]:
    """Puts SyncBatchNorm in the place of each batch normalisation within a model, over the same tensors.

    Returns:
        What was there: parent, name, module.
    """
    convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    found: list[tuple[Model, str, Model]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm) and not isinstance(child, torch.nn.SyncBatchNorm)
    ]
    for parent, name, child in found:
        parent._modules[name] = convert(child)
    return found


def find_unused(args: Any, model: torch.nn.Module) -> bool:
    """Whether DDP looks for parameters that a step leaves out.

    As the argument says; else, for a model that knows of gradient checkpointing, where it is off; else yes.
    """
    if args.ddp_find_unused_parameters is not None:
        return bool(args.ddp_find_unused_parameters)
    checkpointing = getattr(model, "is_gradient_checkpointing", None)
    return True if checkpointing is None else not checkpointing


class DDPPlugin:
    """The strategy `ddp`."""

    def __init__(self, options: DDPOptions) -> None:
        self.options = options

    @hookimpl
    def make_strategy(self, run: Run) -> DDPStrategy:
        """One for each run."""
        return DDPStrategy(run, self.options)
