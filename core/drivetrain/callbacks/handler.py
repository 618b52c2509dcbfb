"""The callbacks of a trainer, called one after another in their documented order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from drivetrain.callbacks.adapter import CallbackAdapter
from drivetrain.callbacks.base import CALLBACK_EVENTS
from drivetrain.callbacks.flow import DefaultFlowCallback
from drivetrain.timing import Timing

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments
    from drivetrain.callbacks.control import TrainerControl
    from drivetrain.callbacks.state import TrainerState
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


class CallbackHandler:
    """Calls callbacks one after another and lets each change, or replace, the control.

    Callbacks are met by duck typing, so those of transformers work here. A callback that does not override an
    event costs nothing at that event.

    Args:
        callbacks: classes or instances, in order.
        model, tokenizer, optimizer, lr_scheduler: handed to every event by keyword.

    Attributes:
        listening: for each event the methods that will be called.
        names: of the callbacks that are plugins, by the object's id.
        hooks: the plugin by which the loop reaches the callbacks.
    """

    def __init__(
        self,
        callbacks: Iterable[Any],
        model: Any,
        tokenizer: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        self.callbacks: list[Any] = []
        self.model = model
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.train_dataloader: Any = None
        self.eval_dataloader: Any = None
        self.run: Run | None = None
        self.names: dict[int, str] = {}
        self.listening: dict[str, list[Callable[..., Any]]] = {}
        self.hooks = CallbackAdapter(self)
        for callback in callbacks:
            self.add_callback(callback)
        self.refresh()

    def add_callback(self, callback: Any) -> None:
        """Adds a callback, a class or an instance, at the end."""
        made = callback() if isinstance(callback, type) else callback
        kind = type(made)
        if kind in {type(found) for found in self.callbacks}:
            logger.warning(
                "A %s is among the callbacks already; now there are two: %s.",
                kind.__name__,
                self.callback_list,
            )
        self.callbacks.append(made)
        self.refresh()

    def pop_callback(self, callback: Any) -> Any:
        """Removes a callback, by class or by instance, and returns it; None where it was not there."""
        for found in self.callbacks:
            if (isinstance(callback, type) and isinstance(found, callback)) or found is callback:
                self.callbacks.remove(found)
                self.refresh()
                return found
        return None

    def remove_callback(self, callback: Any) -> None:
        """Removes a callback, by class or by instance; an instance must be there."""
        if isinstance(callback, type):
            self.pop_callback(callback)
        else:
            self.callbacks.remove(callback)
            self.refresh()

    @property
    def callback_list(self) -> str:
        """The callbacks' class names, one a line."""
        return "\n".join(type(found).__name__ for found in self.callbacks)

    def refresh(self) -> None:
        """Looks again at which callback overrides what, as scripts may have changed the list by hand."""
        for event in (*CALLBACK_EVENTS, "on_exception"):
            methods = (getattr(found, event, None) for found in self.callbacks)
            self.listening[event] = [
                method
                for method in methods
                # A base class's method does nothing, whichever library the base class is from.
                if method is not None and getattr(method, "__qualname__", "") != f"TrainerCallback.{event}"
            ]

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Calls one event on every callback that overrides it; returns the control that the last one left."""
        timing = self.run.timing if self.run is not None else Timing()
        for method in tuple(self.listening[event]):
            mark, before = timing.mark, perf_counter()
            result = method(
                args,
                state,
                control,
                model=self.model,
                tokenizer=self.tokenizer,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                run=self.run,
                **kwargs,
            )
            owner = getattr(method, "__self__", method)
            if type(owner) is not DefaultFlowCallback:
                timing.leave_plugin(self.names.get(id(owner)) or type(owner).__name__, mark, before)
            if result is not None:
                control = result
        return control

    # The documented events, for scripts that call them. Each clears the flags that it settles before the
    # callbacks are called, and returns the control.

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """The Trainer has been built."""
        return self.call_event("on_init_end", args, state, control)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """Training begins."""
        control.should_training_stop = False
        return self.call_event("on_train_begin", args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """Training has ended."""
        return self.call_event("on_train_end", args, state, control)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """An epoch begins."""
        control.should_epoch_stop = False
        return self.call_event("on_epoch_begin", args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """An epoch has ended."""
        return self.call_event("on_epoch_end", args, state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """An update begins."""
        control.should_log = False
        control.should_evaluate = False
        control.should_save = False
        return self.call_event("on_step_begin", args, state, control)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """A micro-batch that is not the last of its update is done."""
        return self.call_event("on_substep_end", args, state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """An update is done."""
        return self.call_event("on_step_end", args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float]
    ) -> TrainerControl:
        """An evaluation has ended."""
        control.should_evaluate = False
        return self.call_event("on_evaluate", args, state, control, metrics=metrics)

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float]
    ) -> TrainerControl:
        """A prediction has ended."""
        return self.call_event("on_predict", args, state, control, metrics=metrics)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """A checkpoint has been written."""
        control.should_save = False
        return self.call_event("on_save", args, state, control)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any]
    ) -> TrainerControl:
        """A row of the log has been made."""
        control.should_log = False
        return self.call_event("on_log", args, state, control, logs=logs)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """A batch of an evaluation is done."""
        return self.call_event("on_prediction_step", args, state, control)
