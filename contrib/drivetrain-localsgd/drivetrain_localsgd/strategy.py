"""Local SGD (Stich, 2019), with an outer optimizer over the averages (Douillard et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from drivetrain import (
    ConfigurationError,
    OptimizerFactory,
    Prepared,
    Run,
    SchedulerFactory,
    TrainState,
    Update,
    WholeParameters,
    collect,
    hookimpl,
)


@dataclass(frozen=True)
class LocalSGDOptions:
    """Options of the strategy `localsgd`.

    Attributes:
        every: updates between two averages.
        outer_learning_rate: of the outer step; 1.0 takes the average as it is.
        outer_momentum: of the outer step.
        nesterov: Nesterov's form of the momentum.
    """

    every: int = 8
    outer_learning_rate: float = 1.0
    outer_momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1.")
        if self.nesterov and self.outer_momentum <= 0:
            raise ValueError("nesterov needs outer_momentum above 0.")


class LocalSGD(WholeParameters):
    """Every process updates its own weights; every `every` updates they are averaged."""

    def __init__(self, run: Run, options: LocalSGDOptions) -> None:
        super().__init__(run)
        self.options = options
        self.since = 0
        self.outer: torch.optim.SGD | None = None

    def setup(self, run: Run) -> None:
        """Checks that there are processes to average over."""
        if not dist.is_initialized():
            raise ConfigurationError(
                "Strategy 'localsgd' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
            )

    def prepare(
        self, model: torch.nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory
    ) -> Prepared:
        """All processes begin with rank 0's weights; the anchor of the outer step is kept beside them."""
        prepared = super().prepare(model, optimizer, scheduler)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.data, src=0)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.anchor = [torch.nn.Parameter(parameter.detach().clone()) for parameter in self.trained]
        self.outer = torch.optim.SGD(
            self.anchor,
            lr=self.options.outer_learning_rate,
            momentum=self.options.outer_momentum,
            nesterov=self.options.nesterov,
        )
        return prepared

    def update(self, max_norm: float | None) -> Update:
        """A process's own update; then the outer step, when it is due."""
        done = super().update(max_norm)
        self.since += 1
        if self.since >= self.options.every:
            self.average()
        return done

    @torch.no_grad()
    def average(self) -> None:
        """The outer step: the anchor moves against (anchor - average), and every process starts from it."""
        if self.since == 0 or self.outer is None:
            return
        world = dist.get_world_size()
        for parameter, anchor in zip(self.trained, self.anchor, strict=True):
            mean = parameter.detach().clone()
            dist.all_reduce(mean)
            anchor.grad = anchor.detach() - mean / world
        self.outer.step()
        for parameter, anchor in zip(self.trained, self.anchor, strict=True):
            parameter.copy_(anchor)
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)
        self.since = 0

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The averaged weights: a checkpoint holds one model."""
        self.average()
        state = super().state_out(weights_only)
        for name, gradient in state.gradients.items():
            dist.all_reduce(mean := gradient.clone())
            state.gradients[name] = mean / dist.get_world_size()
        return state

    @torch.no_grad()
    def state_in(self, state: TrainState) -> None:
        """Sets the weights, and the anchor with them."""
        super().state_in(state)
        for parameter, anchor in zip(self.trained, self.anchor, strict=True):
            anchor.copy_(parameter)
        self.since = 0


class LocalSGDPlugin:
    """The strategy `localsgd`."""

    def __init__(self, options: LocalSGDOptions) -> None:
        self.options = options
        self.strategy: LocalSGD | None = None

    @hookimpl
    def make_strategy(self, run: Run) -> LocalSGD:
        """One for each run."""
        self.strategy = LocalSGD(run, self.options)
        return self.strategy

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        """One model is evaluated, not one a process."""
        if run.control.should_evaluate and self.strategy is not None:
            self.strategy.average()

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """The same, where evaluations are due by epochs."""
        if run.control.should_evaluate and self.strategy is not None:
            self.strategy.average()

    @hookimpl
    def on_train_end(self) -> None:
        """The run ends with one model."""
        if self.strategy is not None:
            self.strategy.average()

    @hookimpl
    def save_state(self) -> dict[str, Any] | None:
        """The momentum of the outer step."""
        outer = self.strategy.outer if self.strategy is not None else None
        return None if outer is None else {"outer": outer.state_dict()}

    @hookimpl
    def load_state(self, state: dict[str, Any]) -> None:
        """Sets it."""
        if self.strategy is not None and self.strategy.outer is not None:
            self.strategy.outer.load_state_dict(state["outer"])
