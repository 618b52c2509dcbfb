"""The adapter that lets documented callbacks listen to the loop's hooks, in their documented order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from drivetrain.callbacks.base import CALLBACK_EVENTS
from drivetrain.plugin import hookimpl

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
        self._listening: dict[str, list[Callable[..., Any]]] = {}
        for callback in callbacks:
            self.add_callback(callback)
        self._listen()

    def add_callback(self, callback: Any) -> None:
        """Adds a callback, a class or an instance, at the end."""
        made = callback() if isinstance(callback, type) else callback
        kind = type(made)
        if kind in {type(found) for found in self.callbacks}:
            logger.warning("A %s is among the callbacks already; now there are two: %s.", kind.__name__, self.callback_list)
        self.callbacks.append(made)
        self._listen()

    def pop_callback(self, callback: Any) -> Any:
        """Removes a callback, by class or by instance, and returns it; None where it was not there."""
        for found in self.callbacks:
            if (isinstance(callback, type) and isinstance(found, callback)) or found is callback:
                self.callbacks.remove(found)
                self._listen()
                return found
        return None

    def remove_callback(self, callback: Any) -> None:
        """Removes a callback, by class or by instance; an instance must be there."""
        if isinstance(callback, type):
            self.pop_callback(callback)
        else:
            self.callbacks.remove(callback)
            self._listen()

    @property
    def callback_list(self) -> str:
        """The callbacks' class names, one a line."""
        return "\n".join(type(found).__name__ for found in self.callbacks)

    def _listen(self) -> None:
        for event in (*CALLBACK_EVENTS, "on_exception"):
            methods = (getattr(found, event, None) for found in self.callbacks)
            self._listening[event] = [
                method
                for method in methods
                # A base class's method does nothing, whichever library the base class is from.
                if method is not None and getattr(method, "__qualname__", "") != f"TrainerCallback.{event}"
            ]

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Calls one event on every callback that overrides it; returns the control that the last one left."""
        for method in tuple(self._listening[event]):
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
            if result is not None:
                control = result
        return control

    def _forward(self, event: str, run: Run, **kwargs: Any) -> None:
        if self._listening[event]:
            run.control = self.call_event(event, run.args, run.state, run.control, **kwargs)

    # What follows are the hooks of the loop, each forwarded to the callbacks. The flags that an event
    # settles are cleared before it, as documented.

    @hookimpl
    def on_init_end(self, run: Run) -> None:
        """Forwarded."""
        self._forward("on_init_end", run)

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Clears the stop, and forwards."""
        run.control.should_training_stop = False
        self._forward("on_train_begin", run)

    @hookimpl
    def on_epoch_begin(self, run: Run) -> None:
        """Clears the epoch's stop, and forwards."""
        run.control.should_epoch_stop = False
        self._forward("on_epoch_begin", run)

    @hookimpl
    def on_step_begin(self, run: Run) -> None:
        """Clears what was due after the last step, and forwards."""
        control = run.control
        control.should_log = False
        control.should_evaluate = False
        control.should_save = False
        if self._listening["on_step_begin"]:
            self._forward("on_step_begin", run)

    @hookimpl
    def on_substep_end(self, run: Run) -> None:
        """Forwarded."""
        self._forward("on_substep_end", run)

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        """Forwarded."""
        self._forward("on_step_end", run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Forwarded."""
        self._forward("on_epoch_end", run)

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Forwarded."""
        self._forward("on_train_end", run)

    @hookimpl
    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """Clears the flag, and forwards."""
        run.control.should_evaluate = False
        self._forward("on_evaluate", run, metrics=metrics)

    @hookimpl
    def on_predict(self, run: Run, metrics: dict[str, float]) -> None:
        """Forwarded."""
        self._forward("on_predict", run, metrics=metrics)

    @hookimpl
    def on_prediction_step(self, run: Run) -> None:
        """Forwarded."""
        self._forward("on_prediction_step", run)

    @hookimpl
    def on_save(self, run: Run) -> None:
        """Clears the flag, and forwards."""
        run.control.should_save = False
        self._forward("on_save", run)

    @hookimpl
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """Clears the flag, and forwards."""
        run.control.should_log = False
        self._forward("on_log", run, logs=logs)

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        """Forwarded to the callbacks that have it, as the progress bar does; documented ones need not."""
        self._forward("on_exception", run, error=error)
