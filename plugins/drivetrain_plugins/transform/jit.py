"""Evaluation and prediction by a trace of the model (`torch.jit`); training by the model itself."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.transform.traced import NotTraceable, Traced, signature_of

logger = logging.getLogger("drivetrain")


class _Calls:
    """What a model's call goes to while the plugin is at work.

    Args:
        model: whose calls these are.
        before: what they went to before: its own, or what torch.compile made of it.
        says: whether this process tells of what happens.
        compute: what the forward computes in under autocast.
    """

    def __init__(self, model: nn.Module, before: Any, says: bool, compute: torch.dtype | None = None) -> None:
        self.model = model
        self.before = before
        self.call = before if before is not None else model._call_impl
        self.says = says
        self.compute = compute
        self.trace: Traced | None = None
        self.untraceable = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.model.training or torch.is_grad_enabled():
            self.trace = None
            return self.call(*args, **kwargs)
        return self._evaluate(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _evaluate(self, args: Any, kwargs: Any) -> Any:
        if not self.untraceable:
            try:
                return self._traced(args, kwargs)
            except NotTraceable as why:
                self.untraceable, self.trace = True, None
                if self.says:
                    logger.warning(
                        "jit_mode_eval=True: %s is evaluated without a trace, since %s.",
                        type(self.model).__name__,
                        why,
                    )
        return self.call(*args, **kwargs)

    def _traced(self, args: Any, kwargs: Any) -> Any:
        signature = signature_of(args, kwargs)
        if self.trace is None or not self.trace.is_of(self.model):
            self.trace = Traced(self.model, args, kwargs, self.compute)
            if self.trace.choices and self.says:
                logger.info(
                    "The trace of %s takes %d choices of the model for fixed; the first: %s.",
                    type(self.model).__name__,
                    len(self.trace.choices),
                    self.trace.choices[0],
                )
        if not self.trace.fits(signature):
            return self.call(*args, **kwargs)
        return self.trace(signature, args, kwargs)


class JIT:
    """Traces the model from the first batch of an evaluation, and again once its weights have changed.

    The model stays the object it was, and is called as before after the run; first of all transforms, since it
    came last.
    """

    def __init__(self) -> None:
        self._calls: _Calls | None = None

    @hookimpl
    def transform_model(self, run: Run, model: nn.Module) -> None:
        """Sets how the bare model is called where nothing is trained; a wrapper around it stays as it is."""
        self._close()
        # What replaced the model for an evaluation (Intel's extension makes a copy) is traced in its place.
        bare = run.model if any(module is run.model for module in model.modules()) else model
        compute = run.precision.policy.compute
        self._calls = _Calls(bare, bare._compiled_call_impl, run.is_main_process, compute)
        bare._compiled_call_impl = self._calls

    @staticmethod
    def traced(model: nn.Module, inputs: Any) -> nn.Module:
        """A model over the same weights that is called by a trace; with one warning the model, where it has none.

        Args:
            model: its weights stay as they are while the trace is used. It is in evaluation mode afterwards.
            inputs: a batch on the model's device: a mapping, or arguments by position.
        """
        twin = copy.copy(model)
        twin.eval()
        calls = _Calls(twin, None, says=True)
        with torch.no_grad():
            if isinstance(inputs, dict):
                calls(**inputs)
            else:
                calls(*inputs) if isinstance(inputs, (list, tuple)) else calls(inputs)
        if calls.trace is None:
            return model
        twin._compiled_call_impl = calls
        return twin

    def _close(self) -> None:
        if self._calls is not None:
            self._calls.model._compiled_call_impl = self._calls.before
            self._calls = None

    @hookimpl(tryfirst=True)
    def on_train_end(self, run: Run) -> None:
        """Calls the model as before."""
        self._close()

    @hookimpl(tryfirst=True)
    def on_exception(self, run: Run) -> None:
        """Calls the model as before."""
        self._close()

    @hookimpl(tryfirst=True)
    def on_evaluate(self, run: Run) -> None:
        """Calls the model as before, after an evaluation outside training."""
        if not run.is_training:
            self._close()

    @hookimpl(tryfirst=True)
    def on_predict(self, run: Run) -> None:
        """Calls the model as before, after a prediction outside training."""
        if not run.is_training:
            self._close()
