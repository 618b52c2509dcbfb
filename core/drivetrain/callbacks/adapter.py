"""What lets documented callbacks listen to the loop's hooks: each hook is handed on to the callback handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivetrain.plugin import hookimpl

if TYPE_CHECKING:
    from drivetrain.callbacks.handler import CallbackHandler
    from drivetrain.run import Run


class CallbackAdapter:
    """Calls the handler's event at each hook; the control that the callbacks leave becomes the run's.

    Args:
        handler: looked up at every call, so that callbacks may be added while a run is under way.
    """

    def __init__(self, handler: CallbackHandler) -> None:
        self.handler = handler
        self.listening = handler.listening

    @hookimpl
    def on_init_end(self, run: Run) -> None:
        """Handed on."""
        run.control = self.handler.on_init_end(run.args, run.state, run.control)

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Handed on."""
        run.control = self.handler.on_train_begin(run.args, run.state, run.control)

    @hookimpl
    def on_epoch_begin(self, run: Run) -> None:
        """Handed on."""
        run.control = self.handler.on_epoch_begin(run.args, run.state, run.control)

    @hookimpl
    def on_step_begin(self, run: Run) -> None:
        """Handed on."""
        if self.listening["on_step_begin"]:
            run.control = self.handler.on_step_begin(run.args, run.state, run.control)
        else:
            control = run.control
            control.should_log = control.should_evaluate = control.should_save = False

    @hookimpl
    def on_substep_end(self, run: Run) -> None:
        """Handed on."""
        if self.listening["on_substep_end"]:
            run.control = self.handler.on_substep_end(run.args, run.state, run.control)

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        """Handed on."""
        if self.listening["on_step_end"]:
            run.control = self.handler.on_step_end(run.args, run.state, run.control)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Handed on."""
        run.control = self.handler.on_epoch_end(run.args, run.state, run.control)

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Handed on."""
        run.control = self.handler.on_train_end(run.args, run.state, run.control)

    @hookimpl
    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """Handed on."""
        run.control = self.handler.on_evaluate(run.args, run.state, run.control, metrics)

    @hookimpl
    def on_predict(self, run: Run, metrics: dict[str, float]) -> None:
        """Handed on."""
        run.control = self.handler.on_predict(run.args, run.state, run.control, metrics)

    @hookimpl
    def on_prediction_step(self, run: Run) -> None:
        """Handed on."""
        if self.listening["on_prediction_step"]:
            run.control = self.handler.on_prediction_step(run.args, run.state, run.control)

    @hookimpl
    def on_save(self, run: Run) -> None:
        """Handed on."""
        run.control = self.handler.on_save(run.args, run.state, run.control)

    @hookimpl
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """Handed on."""
        run.control = self.handler.on_log(run.args, run.state, run.control, logs)

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        """Handed on to the callbacks that have it, as the progress bar does; documented ones need not."""
        self.handler.call_event("on_exception", run.args, run.state, run.control, error=error)
