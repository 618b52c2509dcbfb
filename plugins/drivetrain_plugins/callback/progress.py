"""The progress of a run: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from drivetrain.callbacks import TrainerCallback
from drivetrain_plugins.callback.rows import cells

if TYPE_CHECKING:
    from drivetrain_plugins.callback.bar import Bar


def is_terminal(stream: Any) -> bool:
    """Whether a bar can move on `stream`. A notebook's output is no terminal, nor is a dumb one."""
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # None under pythonw, or a closed file
        return False


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return None


class ProgressCallback(TrainerCallback):
    """Shows how far training, evaluation and prediction are.

    A step costs nothing: there is no `on_step_end` here. The bar's own thread reads `state.global_step` a
    few times a second. Only the first process of a node speaks.
    """

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self._open = False  # whether a display has been chosen for what is under way
        self._training = False

    def _begin(self, state: Any) -> Bar | None:
        """The bar of what is under way, made at the first call; None for plain lines."""
        if not self._open:
            self._open = True
            stream = next((s for s in (sys.stderr, sys.stdout) if is_terminal(s)), None)
            if stream is not None and state.is_local_process_zero:
                from drivetrain_plugins.callback.bar import Bar

                self.bar = Bar(stream)
                self.bar.start()
        return self.bar

    def _end(self) -> None:
        bar, self.bar, self._open = self.bar, None, False
        if bar is not None:
            bar.stop()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, run: Any = None, **kwargs: Any
    ) -> None:
        """Puts the bar up."""
        self._end()  # a run that failed, or a restart with a smaller batch, may have left one
        self._training = True
        bar = self._begin(state)
        if bar is not None:
            accumulation = run.accumulation if run is not None else args.gradient_accumulation_steps
            rows = args.train_batch_size * accumulation * args.world_size
            bar.watch_training(state, optimizer, rows_per_step=rows)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, run: Any = None, **kwargs: Any
    ) -> None:
        """Counts a batch of an evaluation or a prediction."""
        bar = self.bar
        if bar is None:
            if self._open:
                return
            bar = self._begin(state)
            if bar is None:
                return
        if bar.predicting:
            bar.predicted += 1
            return
        prediction = run.prediction if run is not None else None
        batches = prediction.batches if prediction is not None else _length(eval_dataloader)
        bar.watch_prediction(prediction.description if prediction is not None else "Evaluation", batches)
        bar.predicted = 1

    def _prediction_is_over(self) -> None:
        if self.bar is not None:
            self.bar.forget_prediction()
        if not self._training:
            self._end()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the evaluation's bar away."""
        self._prediction_is_over()

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Takes the prediction's bar away, and shows its metrics, for which there is no row of the log."""
        if metrics:
            self._show(metrics, state, None)
        self._prediction_is_over()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        run: Any = None,
        **kwargs: Any,
    ) -> None:
        """Shows the row, above the bar if there is one."""
        if logs is not None:
            self._show(logs, state, run)

    def _show(self, logs: dict[str, Any], state: Any, run: Any) -> None:
        if not state.is_local_process_zero:
            return
        bar = self.bar
        max_steps = state.max_steps if self._training else 0
        if bar is not None:
            bar.note(logs)
            shown = cells(logs, state.global_step, max_steps)
            if is_terminal(sys.stdout):
                bar.print(shown)
                return
        else:
            shown = cells(logs, state.global_step, max_steps, run.figures if run is not None else None)
        print("  ".join(map(str, shown)), flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the full bar where it stands."""
        self._end()
        self._training = False

    def on_exception(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the terminal back before the error is shown."""
        self._end()
        self._training = False
