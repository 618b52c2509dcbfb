"""SignSGD: of each gradient the sign is sent, eight to a byte.

With error feedback (Karimireddy et al., 2019, *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*)
a process sends the signs of its gradient plus what it has not sent yet, with one size for each tensor, and all take
the mean. Without it (Bernstein et al., 2018, *signSGD: Compressed Optimisation for Non-Convex Problems*) the processes
vote on the sign of each element.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    WholeParameters,
    average,
    broadcast,
    collect,
    gather,
    hookimpl,
)
from drivetrain_signsgd.packing import pack, packed_size, unpack

logger = logging.getLogger("drivetrain.signsgd")


@dataclass(frozen=True)
class SignSGDOptions:
    """Options of the strategy `signsgd`.

    Attributes:
        error_feedback: what the signs leave of a gradient is kept, and added to the next one. False is a vote.
        momentum: of the vote: signs are those of a running mean of a process's gradients, in which the past counts
            so much.
    """

    error_feedback: bool = True
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")
        if self.error_feedback and self.momentum:
            raise ValueError(
                "momentum is of the vote: set error_feedback=False, or take an optimizer with momentum."
            )


class SignSGD(WholeParameters):
    """Every process holds the whole model; their gradients meet as signs, and the optimizer is whichever was chosen."""

    def __init__(self, run: Run, options: SignSGDOptions) -> None:
        super().__init__(run)
        self.options = options
        self.trained: dict[str, torch.nn.Parameter] = {}
        self.kept: dict[str, Tensor] = {}  # what was not sent; for a vote the running mean
        self.rows = 0.0  # of the update under way, as a share of those of an even batch
        self.exchanges = self.bytes_sent = 0

    def setup(self, run: Run) -> None:
        """Checks that there are processes to talk to, and that gradients are as they are.

        Raises:
            ConfigurationError: the script was not started by a launcher; the precision has a loss scale.
        """
        if not dist.is_initialized():
            raise ConfigurationError(
                "Strategy 'signsgd' needs several processes: start the script by torchrun --nproc-per-node 2 SCRIPT."
            )
        if run.precision.policy.loss_scale is not None:
            raise ConfigurationError(
                f"Strategy 'signsgd' cannot take the precision {run.precision.policy.name!r}, which has a loss_scale: "
                "it makes gradients infinite on purpose, and what is infinite has no size to be sent. Use bf16=True."
            )

    def prepare(
        self, model: torch.nn.Module, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """The model on its device, and beside each trained parameter room for what is kept."""
        prepared = super().prepare(model, optimizer, scheduler)
        if prepared.optimizer is not None:
            named = model.named_parameters()
            self.trained = {name: p for name, p in named if p.requires_grad and p.numel()}
            self.kept = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.trained.items()}
        return prepared

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """All begin with the weights of rank 0, before the optimizer is built."""
        broadcast((*model.parameters(), *model.buffers()))
        return model

    def backward(self, loss: Tensor) -> None:
        """A process's vote counts as much as its rows."""
        super().backward(loss)
        self.rows += self.run.batch_weight / self.accumulation

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Gradients meet after the last micro-batch, so that who looks at them finds what the optimizer will."""
        yield
        if last:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Puts the gradient that all agree on in the place of each process's own."""
        signs, sizes = [], []
        for name, parameter in self.trained.items():
            kept = self.keep(name, parameter.grad)
            signs.append(pack(self.is_positive(kept)))
            sizes.append(self.size_of(kept, parameter.grad))
        used = [parameter.grad is not None for parameter in self.trained.values()]
        message = torch.cat(signs)
        notes = torch.stack([torch.stack(sizes), torch.tensor(used, device=message.device).float()])
        all_signs, all_notes = collect((message[None], notes[None]))
        # What nobody used stays without a gradient. Looking waits for the device, so only who lacks one looks.
        anywhere = used if all(used) else all_notes[:, 1].amax(0).tolist()
        start = 0
        for place, (name, parameter) in enumerate(self.trained.items()):
            end = start + packed_size(parameter.numel())
            if anywhere[place]:
                parameter.grad = self.decode(name, all_signs[:, start:end], all_notes[:, 0, place]).to(
                    parameter
                )
            start = end
        broadcast(self.model.buffers())
        self.rows = 0.0
        self.exchanges += 1
        self.bytes_sent += message.nbytes + notes.nbytes
        self.run.figures["megabytes_sent"] = self.bytes_sent / 1e6

    def keep(self, name: str, gradient: Tensor | None) -> Tensor:
        """The gradient on top of what was not sent yet; in a vote, the running mean."""
        kept = self.kept[name]
        if not self.options.error_feedback:
            kept.mul_(self.options.momentum)
        return kept if gradient is None else kept.add_(gradient, alpha=1 - self.options.momentum)

    def is_positive(self, kept: Tensor) -> Tensor:
        """The signs. A bit has no third value: zeros are taken for positive and for negative in turn."""
        return kept >= 0 if self.run.state.global_step % 2 else kept > 0

    def size_of(self, kept: Tensor, gradient: Tensor | None) -> Tensor:
        """What a sign stands for: the mean size of what is kept; in a vote, the process's share of the rows.

        Not a number where the gradient is none: a sign would hide that.
        """
        if self.options.error_feedback:
            return kept.abs().mean()
        return kept.sum() * 0 + (self.rows if gradient is not None else 0.0)

    def decode(self, name: str, signs: Tensor, sizes: Tensor) -> Tensor:
        """The mean of what all have sent, of which this process keeps its own no longer; or how the vote ends."""
        kept = self.kept[name]
        sent = [unpack(packed, kept.shape) * size for packed, size in zip(signs, sizes, strict=True)]
        if self.options.error_feedback:
            kept -= sent[self.run.processes.rank]
        kept.nan_to_num_(0.0, 0.0, 0.0)  # the update may be skipped, and then nothing of it is left
        total = sum(sent, torch.zeros_like(kept))
        if self.options.error_feedback:
            return total / len(sent)
        return torch.where(total.isnan(), total, total.sign())

    def collect(self, tensors: Any) -> Any:
        """All ranks' tensors, one after another along dimension 0."""
        return collect(tensors)

    def state_out(self, weights_only: bool = False) -> TrainState:
        """What any strategy goes on from: the gradients of an unfinished accumulation are averaged."""
        state = super().state_out(weights_only)
        if not weights_only:
            state.gradients = average(state.gradients, self.run.device)
        return state

    def own_state(self) -> dict[str, Any]:
        """Of each parameter, what every rank has kept and its own gradient. A collective; all of it on rank 0."""
        return {
            "error_feedback": self.options.error_feedback,
            "ranks": gather(
                {
                    name: {"kept": kept, "gradient": self.trained[name].grad, "rows": self.rows}
                    for name, kept in self.kept.items()
                }
            ),
        }

    @torch.no_grad()
    def take_own_state(self, saved: dict[str, Any]) -> None:
        """Each rank's own where there are as many ranks as then; else each takes the mean, which is as much in all."""
        if saved["error_feedback"] != self.options.error_feedback:
            logger.warning("error_feedback was %s: what was kept then is left out.", saved["error_feedback"])
            return
        ranks = saved["ranks"]
        same = len(ranks) == self.run.processes.world_size
        if same:
            ranks = [ranks[self.run.processes.rank]]
        for name, parameter in self.trained.items():
            entries = [of_rank[name] for of_rank in ranks]
            self.kept[name].copy_(sum(entry["kept"] for entry in entries) / len(entries))
            self.rows = sum(entry["rows"] for entry in entries) / len(entries)
            if same:
                gradient = entries[0]["gradient"]
                parameter.grad = None if gradient is None else gradient.to(parameter)

    def close(self) -> torch.nn.Module:
        """Lets go of what was kept."""
        self.trained, self.kept = {}, {}
        return super().close()


class SignSGDPlugin:
    """The strategy `signsgd`."""

    def __init__(self, options: SignSGDOptions) -> None:
        self.options = options
        self.strategy: SignSGD | None = None

    @hookimpl
    def make_strategy(self, run: Run) -> SignSGD:
        """One for each run."""
        self.strategy = SignSGD(run, self.options)
        return self.strategy

    @hookimpl
    def save_state(self) -> dict[str, Any] | None:
        """What each process has kept, for a checkpoint."""
        return self.strategy.own_state() if self.strategy is not None else None

    @hookimpl
    def load_state(self, state: dict[str, Any]) -> None:
        """Sets it, after the strategy's `state_in`."""
        if self.strategy is not None:
            self.strategy.take_own_state(state)

    @hookimpl
    def on_train_end(self) -> None:
        """Says what was sent."""
        if self.strategy is not None:
            whole = sum(p.nbytes for p in self.strategy.trained.values()) * self.strategy.exchanges
            sent = self.strategy.bytes_sent
            logger.info("Each process sent %.3f MB of %.3f MB of gradients.", sent / 1e6, whole / 1e6)
