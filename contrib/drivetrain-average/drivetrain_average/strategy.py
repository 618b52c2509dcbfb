"""Every process holds the whole model; the gradients of an update are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from drivetrain import (
    ConfigurationError,
    Run,
    TrainState,
    WholeParameters,
    average,
    broadcast,
    collect,
    hookimpl,
)


class Average(WholeParameters):
    """Adds to the strategy of one process what several need."""

    def setup(self, run: Run) -> None:
        """Checks that there are processes to talk to.

        Raises:
            ConfigurationError: the script was not started by a launcher.
        """
        if not dist.is_initialized():
            raise ConfigurationError(
                "Strategy 'average' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
            )

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """All begin with the weights of rank 0. The model is called as it is."""
        broadcast((*model.parameters(), *model.buffers()))
        return model

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around one forward and backward pass. Only after the last of an update do gradients meet."""
        yield
        if last:
            for name, gradient in self.average_gradients().items():
                self.model.get_parameter(name).grad = gradient
            broadcast(self.model.buffers())

    def average_gradients(self) -> dict[str, torch.Tensor]:
        """The mean over the processes, by the parameters' names. A process may lack some: it counts as zeros."""
        named = self.model.named_parameters()
        return average({name: p.grad for name, p in named if p.grad is not None}, self.run.device)

    def collect(self, tensors: Any) -> Any:
        """All processes' tensors, one after another along dimension 0: predictions, and losses."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """What any strategy goes on from. An epoch may end with gradients that are not averaged yet."""
        state = super().state_out(weights_only)
        if not weights_only:
            state.gradients = self.average_gradients()
        return state


class AveragePlugin:
    """The strategy `average`."""

    @hookimpl
    def make_strategy(self, run: Run) -> Average:
        """One for each run."""
        return Average(run)
