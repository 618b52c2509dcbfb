"""torch.compile, in place: the model stays the object it was, and its state's keys stay as they are."""

from __future__ import annotations

from torch import nn

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.transform.backends import chosen


class TorchCompile:
    """Compiles the model that is called. The first batch of each new shape pays for the compilation.

    The model is as it was after training; the compiled code stays in torch's cache, so that an
    evaluation that follows does not compile again what training has compiled.
    """

    def __init__(self) -> None:
        self._compiled: nn.Module | None = None

    @hookimpl
    def transform_model(self, run: Run, model: nn.Module) -> None:
        """Sets how `model` is called, and leaves the model in its place."""
        self._undo()
        backend, mode = chosen(run.args)
        # The mode is inductor's; other backends complain of an argument that they do not know.
        if backend == "inductor" and mode is not None:
            model.compile(backend=backend, mode=mode)
        else:
            model.compile(backend=backend)
        self._compiled = model

    def _undo(self) -> None:
        if self._compiled is not None:
            self._compiled._compiled_call_impl = None
            self._compiled = None

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Calls the model as before."""
        self._undo()

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Calls the model as before."""
        self._undo()

    @hookimpl
    def on_evaluate(self, run: Run) -> None:
        """Calls the model as before, after an evaluation outside training."""
        if not run.is_training:
            self._undo()

    @hookimpl
    def on_predict(self, run: Run) -> None:
        """Calls the model as before, after a prediction outside training."""
        if not run.is_training:
            self._undo()
