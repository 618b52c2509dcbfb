"""`Run`: all that a plugin sees of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from drivetrain.errors import ConfigurationError
from drivetrain.timing import Timing

if TYPE_CHECKING:
    import torch

    from drivetrain.arguments import TrainingArguments
    from drivetrain.callbacks import TrainerControl, TrainerState
    from drivetrain.data import Split
    from drivetrain.processes import Processes
    from drivetrain.resolve import Plan
    from drivetrain.slots import LRScheduler, Model, Precision, Strategy, Update

logger = logging.getLogger("drivetrain")


@dataclass(slots=True)
class Prediction:
    """The progress of an evaluation or a prediction that is under way.

    Attributes:
        description: "Evaluation" or "Prediction".
        batches: how many there are, None where the data have no length.
        done: batches done.
        rows: rows done on this rank.
    """

    description: str
    batches: int | None
    done: int = 0
    rows: int = 0


@dataclass(slots=True, eq=False, weakref_slot=True)
class Run:
    """One run, from the resolution of plugins to the strategy's close.

    Attributes:
        args: the arguments, as they are now.
        state: the documented `TrainerState`: `global_step`, `epoch`, `max_steps`, `log_history`, ...
        control: the documented `TrainerControl`: what is due after this step.
        plan: the plugins of the run, and what was said about them.
        processes: rank, local rank, world size, device.
        writers: the ranks that write, each into a folder of its own; known once the plugins are resolved.
        precision, strategy: the objects of the slots.
        model: the bare model; `model_wrapped`: what the strategy made of it, the one that is called.
        optimizer, lr_scheduler: as the strategy built them.
        processing_class: the tokenizer, or whatever prepares the data, if one was given.
        train_dataloader, eval_dataloader: the loaders in use.
        accumulation: micro-batches an update.
        split: how global batches are cut, where a run goes on with another number of processes.
        is_training: False while `evaluate()` or `predict()` runs by itself.
        loss: of the last micro-batch, divided by the accumulation; a tensor on the device, not read.
        update: the last update: gradient norm (a tensor on the device), and whether it stepped.
        batch_rows: rows trained on since the last row of the log, on this rank.
        batch_weight: the factor of this micro-batch's loss; with it every row of an update counts the same.
        prediction: progress of the evaluation or prediction under way.
        figures: numbers for the progress bar and listeners that no row of the log has: `rows_per_second`,
            `steps_per_second`, `grad_norm`, `seconds_left`. Filled when a row is logged.
        stop_reason: why the run stops early, if somebody asked for it.
        skip_reason: why the gradients at hand are to be dropped; None where they are used.
        timing: where the time of training goes.
        has_evaluation_weights: whether the model holds those now, under an optimizer that trains others.
    """

    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    plan: Plan
    processes: Processes
    model: Model
    processing_class: Any = None
    precision: Precision = None  # type: ignore[assignment]  # set before any plugin but make_* is called
    strategy: Strategy = None  # type: ignore[assignment]
    model_wrapped: Model = None  # type: ignore[assignment]
    optimizer: torch.optim.Optimizer | None = None
    lr_scheduler: LRScheduler | None = None
    train_dataloader: Any = None
    eval_dataloader: Any = None
    accumulation: int = 1
    split: Split | None = None
    is_training: bool = False
    loss: torch.Tensor | None = None
    update: Update | None = None
    batch_rows: int = 0
    batch_weight: float = 1.0
    prediction: Prediction | None = None
    figures: dict[str, float] = field(default_factory=dict)
    stop_reason: str | None = None
    skip_reason: str | None = None
    writers: tuple[int, ...] = ()
    has_evaluation_weights: bool = False
    timing: Timing = field(default_factory=Timing)

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.processes.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self.processes.rank == 0

    @property
    def keeps_state(self) -> bool:
        """Whether this rank writes, so that it needs the whole state: rank 0, and more under `save_on_each_node`."""
        processes = self.processes
        if self.writers:
            return processes.rank in self.writers
        return (processes.local_rank if self.args.save_on_each_node else processes.rank) == 0

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """For `copy.deepcopy`: no plan, whose bound functions are the original's; a run makes its own."""
        from drivetrain.resolve import Plan

        state = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return None, {**state, "plan": Plan(), "prediction": None, "timing": Timing()}

    def options(self, kind: str, name: str) -> Any:
        """The options of an active plugin, an instance of the dataclass its info names."""
        return self.plan.options(kind, name)

    def request_stop(self, reason: str) -> None:
        """Ends training after this step; the reason is logged."""
        self.stop_reason = reason
        self.control.should_training_stop = True
        logger.warning("Training stops after step %d: %s", self.state.global_step, reason)

    def request_skip(self, reason: str) -> None:
        """Drops this update: its gradients are cleared, and optimizer and scheduler do not step.

        To be called in `on_gradients_ready`, by all ranks or by none. The update is counted, as one that a loss
        scaler skips.

        Raises:
            ConfigurationError: the strategy cannot.
        """
        if not hasattr(self.strategy, "discard"):
            active = self.plan.slot("strategy")
            raise ConfigurationError(
                f"Strategy {active.name if active else '?'!r} cannot skip an update, which was asked for: {reason}"
            )
        self.skip_reason = reason

    def skip_update(self) -> Update:
        """What the loop does in the place of an update that a listener wants skipped."""
        self.skip_reason = None
        dropped: Update = self.strategy.discard()  # type: ignore[attr-defined]  # looked for by `request_skip`
        return dropped

    def request_save(self) -> None:
        """Asks for a checkpoint after this step."""
        self.control.should_save = True

    def request_evaluation(self) -> None:
        """Asks for an evaluation after this step."""
        self.control.should_evaluate = True

    def request_log(self) -> None:
        """Asks for a row of the log after this step."""
        self.control.should_log = True
