"""The progress of a run: a display on a terminal or in a notebook, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from drivetrain.callbacks import TrainerCallback
from drivetrain_plugins.callback.rows import cells, say

if TYPE_CHECKING:
    from drivetrain_plugins.callback.bar import Bar
    from drivetrain_plugins.callback.notebook import NotebookDisplay


def is_terminal(stream: Any) -> bool:
    """Whether a bar can move on `stream`. A notebook's output is no terminal, nor is a dumb one."""
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # None under pythonw, or a closed file
        return False


def is_notebook() -> bool:
    """Whether a page shows what this process displays: Jupyter and its kin. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def _display() -> Bar | NotebookDisplay | None:
    """What can be shown here; None where lines are all."""
    if is_notebook():
        from drivetrain_plugins.callback.notebook import NotebookDisplay

        return NotebookDisplay()
    stream = next((stream for stream in (sys.stderr, sys.stdout) if is_terminal(stream)), None)
    if stream is None:
        return None
    from drivetrain_plugins.callback.bar import Bar

    # Where a callback of a run runs another trainer, the first keeps the terminal.
    return Bar(stream) if Bar.active is None else None


class ProgressCallback(TrainerCallback):
    """Shows how far training, evaluation and prediction are.

    A step costs nothing: there is no `on_step_end` here. The display's own thread reads `state.global_step` a
    few times a second. Only the first process of a node speaks.
    """

    def __init__(self) -> None:
        self.display: Bar | NotebookDisplay | None = None
        self._open = False  # whether a display has been looked for, for what is under way
        self._training = False

    def _begin(self, state: Any) -> None:
        if not self._open:
            self._open = True
            self.display = _display() if state.is_local_process_zero else None
            if self.display is not None:
                self.display.start()

    def _end(self) -> None:
        display, self.display, self._open = self.display, None, False
        if display is not None:
            display.stop()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, run: Any = None, **kwargs: Any
    ) -> None:
        """Puts the display up."""
        self._end()  # a run that failed, or a restart with a smaller batch, may have left one
        self._training = True
        self._begin(state)
        if self.display is not None:
            accumulation = run.accumulation if run is not None else args.gradient_accumulation_steps
            rows = args.train_batch_size * accumulation * args.world_size
            self.display.standing.train(args, state, optimizer, rows_per_step=rows)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, run: Any = None, **kwargs: Any
    ) -> None:
        """Counts a batch of an evaluation or a prediction."""
        if not self._open:
            self._begin(state)
        if self.display is None:
            return
        standing = self.display.standing
        if standing.predicting is None:
            prediction = run.prediction if run is not None else None
            standing.predict(
                prediction.description if prediction is not None else "Evaluation",
                prediction.batches if prediction is not None else _length(eval_dataloader),
            )
        standing.predicted += 1

    def _prediction_is_over(self) -> None:
        if self.display is not None:
            self.display.standing.predict_no_more()
        if not self._training:
            self._end()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Takes the evaluation's bar away."""
        if self.display is not None and metrics:
            self.display.standing.evaluated(metrics, state.global_step)
        self._prediction_is_over()

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Takes the prediction's bar away, and shows its metrics, for which there is no row of the log."""
        if metrics:
            self._show(metrics, state, None)
        self._prediction_is_over()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes a checkpoint; `state.global_step` is its own here."""
        if self.display is not None:
            self.display.standing.saved(state.global_step)

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
        figures = run.figures if run is not None else {}
        max_steps = state.max_steps if self._training else 0
        if self.display is not None:
            self.display.standing.log(logs, figures)
            if self.display.row(logs, state.global_step, max_steps):
                return
        say("  ".join(map(str, cells(logs, state.global_step, max_steps, figures))))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the display as it stands."""
        self._end()
        self._training = False

    def on_exception(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the terminal back before the error is shown."""
        self._end()
        self._training = False
