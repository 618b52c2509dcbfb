"""What a slot's plugin must be able to do. The loop knows these Protocols and nothing else of a plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

if TYPE_CHECKING:
    from drivetrain.run import Run

Model: TypeAlias = torch.nn.Module
Group: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PrecisionPolicy:
    """Precision as data, which every strategy translates in its own way or refuses with a reason.

    Attributes:
        name: the precision plugin's name, for messages.
        parameter: dtype that the weights are kept in while training; None leaves the model as it is.
        compute: dtype of the forward pass under autocast; None for no autocast.
        reduce: dtype of gradient reductions; None for that of the gradients.
        loss_scale: options of a dynamic loss scaler (those of `torch.amp.GradScaler`), or None.
        evaluation: dtype that the whole model is cast to for evaluation outside training, or None.
    """

    name: str
    parameter: torch.dtype | None = None
    compute: torch.dtype | None = None
    reduce: torch.dtype | None = None
    loss_scale: Mapping[str, Any] | None = None
    evaluation: torch.dtype | None = None


class Precision(Protocol):
    """How numbers are held. The policy is data; the contexts serve the plain case.

    One that needs more than a policy may have `convert(model)` too: it changes the bare model in place, before
    anything wraps it, and returns a function that puts it back when the run ends.
    """

    policy: PrecisionPolicy

    def setup(self, run: Run) -> None:
        """Process settings of the run (TF32, for instance); `close` puts them back."""

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """The context of a forward pass. May be entered again and again."""

    def close(self) -> None:
        """Puts the process's settings back."""


@dataclass(slots=True)
class OptimizerFactory:
    """How to build the optimizer, since engines differ in when and from what they build it.

    Attributes:
        cls: the optimizer's class, called as `cls(groups, **kwargs)`.
        kwargs: keyword arguments, `lr` among them.
        groups: makes the parameter groups of a model; each has `params` (a list of parameters), and its
            options. A strategy calls it after it has wrapped the model, or before.
        finished: an optimizer that the user handed in or a subclass built; used as it is.
    """

    cls: Callable[..., torch.optim.Optimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    groups: Callable[[Model], list[Group]] | None = None
    finished: torch.optim.Optimizer | None = None

    def build(self, model: Model) -> torch.optim.Optimizer:
        """The optimizer of `model`, or the finished one."""
        if self.finished is not None:
            return self.finished
        groups = self.groups(model) if self.groups is not None else [{"params": list(model.parameters())}]
        return self.cls(groups, **self.kwargs)


class LRScheduler(Protocol):
    """What the loop asks of a scheduler: torch's own, or one that has these four methods."""

    def step(self, *args: Any) -> None:
        """After an update; with the metric, where it is stepped by evaluations."""

    def get_last_lr(self) -> list[float]:
        """The learning rate of the next update, for each parameter group."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """What `state_dict` gave."""


@dataclass(slots=True)
class SchedulerFactory:
    """How to build the scheduler of an optimizer for a number of updates.

    Attributes:
        make: `(optimizer, num_training_steps) -> scheduler`.
        num_training_steps: updates of the whole run.
        per_evaluation: stepped with the metric after each evaluation (reduce on plateau), not after an update.
        finished: a scheduler that the user handed in or a subclass built; used as it is.
    """

    make: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None
    num_training_steps: int = 0
    per_evaluation: bool = False
    finished: LRScheduler | None = None

    def build(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The scheduler of `optimizer`, or the finished one."""
        if self.finished is not None:
            return self.finished
        assert self.make is not None
        return self.make(optimizer, self.num_training_steps)


@dataclass(slots=True)
class Prepared:
    """What a strategy made.

    Attributes:
        model: the one to call.
        optimizer, scheduler: what updates it; None for an evaluation by itself.
        evaluation: makes the context of an evaluation in the midst of training, where other weights are to be evaluated
            than are trained (averages of them, say); entered by every rank. None where they are the same.
    """

    model: Model
    optimizer: torch.optim.Optimizer | None
    scheduler: LRScheduler | None
    evaluation: Callable[[], AbstractContextManager[None]] | None = None


@dataclass(slots=True)
class Update:
    """The outcome of one update.

    Attributes:
        grad_norm: the global L2 norm of the gradients before clipping, a scalar tensor on the device (not
            read, so that nothing waits for it), or None where nothing measured it.
        stepped: False where the loss scaler skipped the step because of an overflow.
    """

    grad_norm: torch.Tensor | None
    stepped: bool


@dataclass(slots=True)
class TrainState:
    """Weights and optimizer in the canonical form, keyed by parameter name, whole, on the host.

    Attributes:
        weights: the bare model's `state_dict()`, without any wrapper's prefix.
        optimizer: parameter name -> key -> tensor or number.
        groups: one dict for each parameter group: its options, and `params`, the names in their order.
        gradients: parameter name -> gradient of an unfinished accumulation; empty between updates.
        loss_scale: the scaler's state, or None.
        optimizer_extra: keys of the optimizer's state_dict besides `state` and `param_groups`.
        spread: whether each rank holds (whole) tensors of a part of the names only, and writes them by itself;
            `groups`, `loss_scale`, `optimizer_extra` and what of the weights is no tensor are rank 0's. Else each
            rank that writes (`run.keeps_state`) holds everything.
        own: the parts, of those above, whose tensors are copies in host memory that were made for this state (gathered
            from other ranks, say), which neither training nor a later state changes: under `save_async` they are not
            copied once more.
    """

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    loss_scale: dict[str, Any] | None = None
    optimizer_extra: dict[str, Any] = field(default_factory=dict)
    spread: bool = False
    own: frozenset[str] = frozenset()


STATE_PARTS = ("weights", "optimizer", "groups", "gradients", "loss_scale", "optimizer_extra")
"""The parts of a `TrainState`."""


class Strategy(Protocol):
    """How the model is spread over processes and devices, and how it is updated."""

    shows_gradients: bool
    """Whether `.grad` of every parameter can be read at `on_gradients_ready`."""

    def setup(self, run: Run) -> None:
        """Called once the process group stands, before the model is built."""

    def model_context(self) -> AbstractContextManager[Any]:
        """The context in which the model is built (meta device, ZeRO's Init)."""

    def prepare(
        self, model: Model, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
    ) -> Prepared:
        """Moves and wraps the model, and builds what updates it; both None for an evaluation by itself."""

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """The context of one forward and backward; gradients are synchronised only at the last."""

    def backward(self, loss: torch.Tensor) -> None:
        """Scales by the accumulation and the loss scale, and runs the backward pass."""

    def update(self, max_norm: float | None) -> Update:
        """Unscales, clips to `max_norm` (None: no clipping), steps, steps the scheduler if it stepped, and
        clears the gradients."""

    def collect(self, tensors: Any) -> Any:
        """Gathers nested tensors from all ranks along dimension 0, in rank order; all ranks get them."""

    def state_out(self, weights_only: bool = False) -> TrainState:
        """The canonical state. A collective: every rank calls it; what ranks that write get (`run.keeps_state`) is
        written, or of a state that is `spread` what each gets. Weights alone are never spread."""

    def state_in(self, state: TrainState) -> None:
        """Sets the canonical state. Weights alone where `groups` is empty."""

    def close(self) -> Model:
        """Ends the run and gives the bare model back."""


class Launcher(Protocol):
    """Who started the processes, and how they reach each other."""

    def start(self, args: Any) -> Any:
        """Makes the process group and returns a `drivetrain.processes.Processes`."""


class Search(Protocol):
    """Hyperparameter search."""

    def run(self, trainer: Any, n_trials: int, direction: str | Sequence[str], **kwargs: Any) -> Any:
        """Runs the trials and returns a `BestRun`, or a list of them where there are several objectives."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent to a hub in one piece: all of it becomes visible, or nothing.

    Attributes:
        repository: where to, as `create` named it.
        files: path in the repository, with forward slashes -> file on this machine.
        message: says what it is, in a line.
        replaces: patterns (`fnmatch`) of paths in the repository; those that match and are not in `files` go away.
    """

    repository: str
    files: Mapping[str, str]
    message: str
    replaces: tuple[str, ...] = ()


class Hub(Protocol):
    """Where a model is shared.

    The core decides what is sent and when, keeps the files as they are meanwhile, and calls `upload` in a thread, one
    at a time. What a method raises is tried again, unless it is a `HubError` that is not `temporary`.
    """

    def create(self, run: Run) -> str:
        """Makes the repository that the arguments name, if it is not there, and returns its full name."""

    def upload(self, upload: Upload) -> Any:
        """Sends files, however long it takes, and returns what names the upload: an address."""

    def write_card(self, run: Run, folder: str, **fields: Any) -> str:
        """Writes the model's card into the folder, and returns its path."""
