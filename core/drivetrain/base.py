"""What every part of the Trainer knows of it: its attributes, and the few methods that parts call in each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.callbacks import CallbackHandler, TrainerControl, TrainerState
from drivetrain.run import Run

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from drivetrain.arguments import TrainingArguments
    from drivetrain.background import BackgroundWriter
    from drivetrain.disk_plan import DiskPlan
    from drivetrain.elastic import Layout
    from drivetrain.hub import Pushing
    from drivetrain.last_update import LastUpdate
    from drivetrain.preemption import Preemption
    from drivetrain.session import Session
    from drivetrain.slots import LRScheduler, TrainState
    from drivetrain.stages import Stages


class TrainerBase:
    """The attributes of a Trainer. `trainer.py` sets them; the parts in other files use them.

    What transformers' Trainer does not have begins with an underscore, but for `run`: scripts keep their own
    `self.losses` there, and the like.

    Attributes:
        args, model, tokenizer, data_collator, train_dataset, eval_dataset, compute_metrics,
        preprocess_logits_for_metrics: as they were given.
        model_wrapped: what the strategy made of the model, while it trains.
        optimizer, lr_scheduler: as given, or as built; None before.
        callback_handler: the documented callbacks.
        run: what plugins see.
        _stages: tells the listeners of training, an evaluation or a prediction that begins or ends.
        _plugins: plugin objects that were handed in; `_made_plugins`: those that were made, by `kind:name`.
        is_in_train, _is_evaluating: what is under way.
        _layout: how the rows of an update are laid out; None before a run.
        _disk: how many checkpoints there will be, against the free space; None where none are written.
        _resumed_from: the checkpoint that the run goes on from, if any.
        _writer, _snapshot: the thread that writes checkpoints, and the state that is being written.
        _preemption: hears the signals that ask a run to leave; None before `train()`, and where nothing is saved.
        _parts: micro-batches that a batch is run in (`keep_effective_batch_size`).
        _checkpoints_written: those of this attempt, under `auto_find_batch_size`.
        _last_update: writes a checkpoint after an error; None where that was not asked for.
    """

    args: TrainingArguments
    model: Any
    model_wrapped: Any
    tokenizer: Any
    model_init: Callable[..., Any] | None
    data_collator: Callable[[list[Any]], Any]
    train_dataset: Any
    eval_dataset: Any
    compute_metrics: Callable[[Any], dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: LRScheduler | None
    callback_handler: CallbackHandler
    run: Run
    _stages: Stages
    _plugins: list[Any]
    _made_plugins: dict[str, Any]
    _trace_hooks: bool
    is_in_train: bool
    _is_evaluating: bool
    current_flos: float
    _writer: BackgroundWriter | None
    _snapshot: TrainState | None
    _preemption: Preemption | None
    _last_update: LastUpdate | None
    _train_batch_size: int
    _eval_batch_size: int
    _parts: int = 1
    _checkpoints_written: set[str] | None = None
    _made_scheduler: bool
    _past: Any = None
    _layout: Layout | None = None
    _disk: DiskPlan | None = None
    _resumed_from: str | None = None

    @property
    def state(self) -> TrainerState:
        """The documented state."""
        return self.run.state

    @state.setter
    def state(self, state: TrainerState) -> None:
        self.run.state = state

    @property
    def control(self) -> TrainerControl:
        """The documented flags."""
        return self.run.control

    @control.setter
    def control(self, control: TrainerControl) -> None:
        self.run.control = control

    @property
    def processing_class(self) -> Any:
        """The tokenizer, by the name of later versions."""
        return self.tokenizer

    def is_local_process_zero(self) -> bool:
        """Whether this is its node's first process."""
        return self.args.local_process_index == 0

    def is_world_process_zero(self) -> bool:
        """Whether this is the run's first process."""
        return self.args.process_index == 0

    def _trains_still(self) -> bool:
        """Whether the strategy holds the model that is being trained, or has just been."""
        return self._session is not None and self._session.is_wrapped

    _session: Session | None = None

    if TYPE_CHECKING:  # defined in another part
        label_names: list[str]

        def log(self, logs: dict[str, float]) -> None:
            """In trainer.py."""

        def _pushes(self) -> Pushing:
            """In output.py."""

        def _build_model(self, trial: Any) -> None:
            """In trainer.py."""

        def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
            """In inputs.py."""

        def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
            """In inputs.py."""

        def _prepare_inputs(self, inputs: Any) -> Any:
            """In inputs.py."""
