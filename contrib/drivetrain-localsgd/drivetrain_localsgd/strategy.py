"""Local SGD (Stich, 2019, *Local SGD Converges Fast and Communicates Little*), and with an outer optimizer DiLoCo
(Douillard et al., 2023, *DiLoCo: Distributed Low-Communication Training of Language Models*).

A *round* is `every` updates. Within it each process updates weights of its own, from rows of its own. At its end the
mean of all processes' weights is taken, and the outer optimizer steps: what it steps is the *anchor*, the weights that
all began the round with, and its gradient is anchor - mean. All begin the next round from there.

Within a round, the model of the run is the mean of the processes' weights: that is what is evaluated, what a checkpoint
shows to others, and what a run ends with. Looking at it changes nothing of the training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from drivetrain import (
    ConfigurationError,
    OptimizerFactory,
    Prepared,
    Run,
    SchedulerFactory,
    TrainState,
    Update,
    WholeParameters,
    average,
    broadcast,
    collect,
    gather,
    hookimpl,
)


@dataclass(frozen=True)
class LocalSGDOptions:
    """Options of the strategy `localsgd`.

    Attributes:
        every: updates of a round.
        outer_learning_rate: of the outer step; 1.0 takes the mean as it is.
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
        if self.outer_learning_rate <= 0:
            raise ValueError(f"outer_learning_rate={self.outer_learning_rate} must be above 0.")
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(f"outer_momentum={self.outer_momentum} must be at least 0 and below 1.")
        if self.nesterov and self.outer_momentum == 0:
            raise ValueError("nesterov needs outer_momentum above 0.")


class LocalSGD(WholeParameters):
    """Every process updates its own weights; at the end of a round all take the outer step together."""

    def __init__(self, run: Run, options: LocalSGDOptions) -> None:
        super().__init__(run)
        self.options = options
        self.trained: dict[str, torch.nn.Parameter] = {}
        self.anchor: dict[str, torch.nn.Parameter] = {}
        self.outer: torch.optim.SGD | None = None
        self.done = 0  # updates of this round
        self.apart = False  # whether the processes' weights may differ

    def setup(self, run: Run) -> None:
        """Checks that there are processes to average over, and that all make the same updates.

        Raises:
            ConfigurationError: the script was not started by a launcher; the precision has a loss scale.
        """
        if not dist.is_initialized():
            raise ConfigurationError(
                "Strategy 'localsgd' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
            )
        if run.precision.policy.loss_scale is not None:
            raise ConfigurationError(
                f"Strategy 'localsgd' cannot take the precision {run.precision.policy.name!r}, which has a loss_scale: "
                "each process would have one of its own, and skip other updates than the rest. Use bf16=True."
            )

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """All begin with the weights of rank 0, before the optimizer is built."""
        broadcast((*model.parameters(), *model.buffers()))
        return model

    def prepare(
        self, model: torch.nn.Module, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """The model on its device with an optimizer of its own, and the anchor with the outer one."""
        prepared = super().prepare(model, optimizer, scheduler)
        if prepared.optimizer is None:  # an evaluation by itself
            return prepared
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.anchor = {name: torch.nn.Parameter(p.detach().clone()) for name, p in self.trained.items()}
        self.outer = torch.optim.SGD(
            self.anchor.values(),
            lr=self.options.outer_learning_rate,
            momentum=self.options.outer_momentum,
            nesterov=self.options.nesterov,
        )
        return replace(prepared, evaluation=self.averaged)

    def update(self, max_norm: float | None) -> Update:
        """A process's own update, clipped by its own norm; the last one of a round ends it."""
        return self.counted(super().update(max_norm))

    def discard(self) -> Update:
        """An update that is skipped counts too: on the other processes it may not be."""
        return self.counted(super().discard())

    def counted(self, update: Update) -> Update:
        """Ends the round with its last update, on all processes at the same one."""
        self.done += 1
        self.apart = True
        if self.done >= self.options.every:
            self.end_round()
        return update

    @torch.no_grad()
    def end_round(self) -> None:
        """The outer step, from which all processes begin the next round."""
        assert self.outer is not None
        means = average(self.trained, self.run.device)
        for name, anchor in self.anchor.items():
            anchor.grad = anchor - means[name]
        self.outer.step()
        self.outer.zero_grad()
        self.show(self.anchor)
        self.done = 0

    @torch.no_grad()
    def show(self, weights: dict[str, Any]) -> None:
        """Sets the same weights on every process, and the buffers of rank 0."""
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])
        broadcast(self.model.buffers())
        self.apart = False

    def take_mean(self) -> None:
        """Where the processes' weights differ, each takes the mean of them."""
        if self.apart:
            self.show(average(self.trained, self.run.device))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The mean in the place of a process's own weights, which come back in the end."""
        if not self.apart:
            yield
            return
        own = (*self.trained.values(), *self.model.buffers())
        kept = [tensor.detach().clone() for tensor in own]
        self.take_mean()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(own, kept, strict=True):
                    tensor.copy_(value)
            self.apart = True

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """What any strategy goes on from: the mean of the weights, of the optimizers' states and of gradients."""
        apart = self.apart
        with self.averaged():
            state = super().state_out(weights_only)
            if apart:  # the tensors in use are about to be the process's own again
                state.weights = copy.deepcopy(state.weights)
        if not weights_only:
            state.optimizer = self.mean_of_optimizers(state.optimizer)
            state.gradients = average(state.gradients, self.run.device)
        return state

    def mean_of_optimizers(self, states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Moments are averaged; counts of steps, and what else has no dimension, is the first rank's that has any."""
        plain: list[Any] = [None] * dist.get_world_size()
        moments = {
            (name, key): value
            for name, entry in states.items()
            for key, value in entry.items()
            if is_moment(value)
        }
        dist.all_gather_object(
            plain,
            {name: {k: v for k, v in entry.items() if not is_moment(v)} for name, entry in states.items()},
        )
        means: dict[str, dict[str, Any]] = {}
        for of_rank in plain:
            for name, entry in of_rank.items():
                means.setdefault(name, dict(entry))
        for (name, key), mean in average(moments, self.run.device).items():
            means[name][key] = mean.cpu()
        return means

    @torch.no_grad()
    def state_in(self, state: TrainState) -> None:
        """The same weights on every process, from which a round begins."""
        super().state_in(state)
        if not state.weights:
            return
        for name, anchor in self.anchor.items():
            anchor.copy_(self.trained[name])
        if self.outer is not None:
            self.outer.state.clear()
        self.done, self.apart = 0, False

    def own_state(self) -> dict[str, Any] | None:
        """What only this strategy goes on from: the round, and each process's own. A collective; whole on rank 0."""
        if self.outer is None:
            return None
        state = super().state_out()
        own = {
            name: {"optimizer": state.optimizer.get(name), "gradient": state.gradients.get(name)}
            for name in self.trained
        }
        if self.apart:
            buffers = (name for name, _ in self.model.named_buffers() if name in state.weights)
            for name in (*self.trained, *buffers):
                own.setdefault(name, {})["weight"] = state.weights[name]
        return {
            "done": self.done,
            "anchor": {name: anchor.detach() for name, anchor in self.anchor.items()},
            "outer": self.outer.state_dict()["state"],
            "ranks": gather(own),
        }

    @torch.no_grad()
    def take_own_state(self, saved: dict[str, Any]) -> None:
        """The round goes on: with each process's own where there are as many as then, else from their mean."""
        assert self.outer is not None
        ranks = saved["ranks"]
        if len(ranks) == dist.get_world_size():
            own = ranks[dist.get_rank()]

            def part(key: str) -> dict[str, Any]:
                return {name: entry[key] for name, entry in own.items() if entry.get(key) is not None}

            # All else is as it stands: of the groups, say, the learning rate, which is the schedule's already.
            state = super().state_out()
            state.weights.update(part("weight"))
            state.optimizer, state.gradients = part("optimizer"), part("gradient")
            super().state_in(state)
            self.apart = bool(part("weight"))
        for name, anchor in self.anchor.items():
            anchor.copy_(saved["anchor"][name])
        options = self.outer.state_dict()["param_groups"]  # as they are set now
        self.outer.load_state_dict({"state": saved["outer"], "param_groups": options})
        self.done = int(saved["done"])


def is_moment(value: Any) -> bool:
    """Whether a mean of it over processes makes sense."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


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
    def save_state(self) -> dict[str, Any] | None:
        """The round under way, for a checkpoint."""
        return self.strategy.own_state() if self.strategy is not None else None

    @hookimpl
    def load_state(self, state: dict[str, Any]) -> None:
        """Sets it, after the strategy's `state_in`."""
        if self.strategy is not None:
            self.strategy.take_own_state(state)

    @hookimpl(tryfirst=True)
    def on_train_end(self) -> None:
        """A run ends with one model, also in the midst of a round."""
        if self.strategy is not None:
            self.strategy.take_mean()
