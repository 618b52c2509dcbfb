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
    from drivetrain.last_update import LastUpdate
    from drivetrain.preemption import Preemption
    from drivetrain.session import Session
    from drivetrain.slots import LRScheduler, TrainState
    from drivetrain.stages import Stages


class TrainerBase:
    """The attributes of a Trainer. `trainer.py` sets them; the parts in other files use them.

    Attributes:
        args, model, tokenizer, data_collator, train_dataset, eval_dataset, compute_metrics,
        preprocess_logits_for_metrics: as they were given.
        model_wrapped: what the strategy made of the model, while it trains.
        optimizer, lr_scheduler: as given, or as built; None before.
        callback_handler: the documented callbacks.
        run: what plugins see.
        stages: tells the listeners of training, an evaluation or a prediction that begins or ends.
        plugins: plugin objects that were handed in; `made_plugins`: those that were made, by `kind:name`.
        is_in_train, is_evaluating: what is under way.
        layout: how the rows of an update are laid out; None before a run.
        disk: how many checkpoints there will be, against the free space; None where none are written.
        resumed_from: the checkpoint that the run goes on from, if any.
        writer, snapshot: the thread that writes checkpoints, and the state that is being written.
        preemption: hears the signals that ask a run to leave; None before `train()`, and where nothing is saved.
        parts: micro-batches that a batch is run in (`keep_effective_batch_size`).
        written: checkpoints of this attempt, under `auto_find_batch_size`.
        last_update: writes a checkpoint after an error; None where that was not asked for.
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
    stages: Stages
    plugins: list[Any]
    made_plugins: dict[str, Any]
    trace_hooks: bool
    is_in_train: bool
    is_evaluating: bool
    current_flos: float
    writer: BackgroundWriter | None
    snapshot: TrainState | None
    preemption: Preemption | None
    last_update: LastUpdate | None
    _train_batch_size: int
    _eval_batch_size: int
    parts: int = 1
    written: set[str] | None = None
    _made_scheduler: bool
    _past: Any = None
    layout: Layout | None = None
    disk: DiskPlan | None = None
    resumed_from: str | None = None

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

    def trains_still(self) -> bool:
        """Whether the strategy holds the model that is being trained, or has just been."""
        return self._session is not None and self._session.is_wrapped

    _session: Session | None = None

    if TYPE_CHECKING:  # defined in another part
        label_names: list[str]

        def log(self, logs: dict[str, float]) -> None:
            """In trainer.py."""

        def _build_model(self, trial: Any) -> None:
            """In trainer.py."""

        def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
            """In inputs.py."""

        def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
            """In inputs.py."""

        def _prepare_inputs(self, inputs: Any) -> Any:
            """In inputs.py."""
