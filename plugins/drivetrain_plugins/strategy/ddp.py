"""PyTorch's DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from drivetrain.collecting import collect
from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.slots import Model, TrainState
from drivetrain.whole_parameters import WholeParameters

if TYPE_CHECKING:
    from drivetrain.run import Run


@dataclass(frozen=True)
class DDPOptions:
    """Options of the strategy `ddp`.

    Attributes:
        static_graph: the model uses the same parameters at every step; faster with activation checkpointing.
        gradient_as_bucket_view: gradients are views of the communication buckets; saves a copy of them.
    """

    static_graph: bool = False
    gradient_as_bucket_view: bool = False


class DDPStrategy(WholeParameters):
    """A replica on every process; gradients are averaged at the last micro-batch of an update."""

    def __init__(self, run: Run, options: DDPOptions) -> None:
        super().__init__(run)
        self.options = options

    def setup(self, run: Run) -> None:
        """Checks that there is a process group.

        Raises:
            ConfigurationError: the script was not started by a launcher.
        """
        if not dist.is_initialized():
            raise ConfigurationError(
                "Strategy 'ddp' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
            )
        if self.options.static_graph and run.accumulation > 1:
            raise ConfigurationError(
                "static_graph of the strategy 'ddp' cannot go with gradient_accumulation_steps "
                f"({run.accumulation}): torch refuses it; leave one out."
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
        self.ddp = DistributedDataParallel(
            model,
            device_ids=[self.run.device.index] if self.run.device.type == "cuda" else None,
            find_unused_parameters=find_unused(args, model),
            static_graph=self.options.static_graph,
            gradient_as_bucket_view=self.options.gradient_as_bucket_view,
            **extra,
        )
        return self.ddp

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged only at the last micro-batch."""
        if last or not hasattr(self, "ddp"):
            return super().micro_batch(last)
        context: AbstractContextManager[Any] = self.ddp.no_sync()
        return context

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state; the gradients of an unfinished accumulation are averaged over the ranks."""
        state = super().state_out(weights_only)
        for name, gradient in state.gradients.items():
            averaged = gradient.clone()
            dist.all_reduce(averaged)
            state.gradients[name] = averaged / dist.get_world_size()
        return state


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
