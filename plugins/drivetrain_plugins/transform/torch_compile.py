"""torch.compile, in place: the model stays the object it was, and its state's keys stay as they are."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch._dynamo
from torch import nn

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.transform.backends import chosen, redraws
from drivetrain_plugins.transform.compilations import Watch, sentences

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class TorchCompileOptions:
    """Options of `torch_compile`, as `plugins={"torch_compile": {"dynamic": True}}`.

    Attributes:
        dynamic: True compiles for all sizes at once, False for each size by itself; by default torch compiles
            for all sizes once it has seen a second one.
        fullgraph: an error where the model is not one graph, in place of several.
        recompile_limit: how often a function may be compiled; by default torch's own limit.
    """

    dynamic: bool | None = None
    fullgraph: bool = False
    recompile_limit: int | None = None

    def __post_init__(self) -> None:
        if self.dynamic not in (None, True, False):
            raise ValueError(f"option 'dynamic' must be true or false, and is {self.dynamic!r}.")
        if self.recompile_limit is not None and self.recompile_limit < 1:
            raise ValueError(f"option 'recompile_limit' must be at least 1, and is {self.recompile_limit}.")


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(self).forward(self, *args, **kwargs)


def _with_a_frame(model: nn.Module) -> nn.Module | None:
    """Gives a model that is torch's own (`nn.Sequential`) a forward that is not, and returns it; else None.

    torch.compile begins at the first Python function that is not torch's. Such a model has none, and would
    run uncompiled without a word.
    """
    if "forward" in vars(model) or not type(model).forward.__module__.startswith("torch.nn."):
        return None
    model.forward = MethodType(_forward, model)
    return model


class TorchCompile:
    """Compiles the model that is called. The first batch of each new shape pays for the compilation.

    The model is as it was after training; the compiled code stays in torch's cache, so that an
    evaluation that follows does not compile again what training has compiled.
    """

    def __init__(self, options: TorchCompileOptions | None = None) -> None:
        self.options = options or TorchCompileOptions()
        self._compiled: nn.Module | None = None
        self._before: Any = None
        self._bare: nn.Module | None = None
        self._limit: int | None = None
        self._watch: Watch | None = None
        self._begun = time.perf_counter()
        self._first_step = 0

    @hookimpl
    def transform_model(self, run: Run, model: nn.Module) -> None:
        """Sets how `model` is called, and leaves the model in its place."""
        self._undo()
        backend, mode = chosen(run.args)
        if run.args.gradient_checkpointing and not redraws(backend):
            logger.warning(
                "torch_compile_backend=%r may not draw the random numbers of checkpointed blocks again, unless it uses "
                "AOTAutograd: gradients are then wrong under dropout.",
                backend,
            )
        # The mode is inductor's; other backends complain of an argument that they do not know.
        extra = {"mode": mode} if backend == "inductor" and mode is not None else {}
        self._compiled, self._before = model, model._compiled_call_impl
        self._bare = _with_a_frame(run.model)
        model.compile(
            backend=backend, dynamic=self.options.dynamic, fullgraph=self.options.fullgraph, **extra
        )
        if self.options.recompile_limit is not None:
            config: Any = torch._dynamo.config
            self._limit, config.recompile_limit = config.recompile_limit, self.options.recompile_limit
        self._watch = Watch()
        self._begun = time.perf_counter()

    def _undo(self) -> None:
        if self._compiled is not None:
            self._compiled._compiled_call_impl = self._before
            self._compiled = self._before = None
        if self._bare is not None:
            vars(self._bare).pop("forward", None)
            self._bare = None
        if self._limit is not None:
            config: Any = torch._dynamo.config
            config.recompile_limit = self._limit
            self._limit = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _tell(self, run: Run) -> None:
        """What was compiled, and why, in the log of the main process."""
        if self._watch is None or not run.is_main_process:
            return
        found = self._watch.read()
        elapsed = time.perf_counter() - self._begun
        rest = f"; the other {max(elapsed - found.seconds, 0):.3g} s"
        if run.is_training:
            rest += f" are {run.state.global_step - self._first_step} updates, and what else was due"
        logger.info(
            "torch.compile: %d compiled, %d of them again, %d graph breaks, in %.3g s%s.",
            found.graphs, len(found.again), len(found.breaks), found.seconds, rest,
        )  # fmt: skip
        for sentence in sentences(found):
            logger.info("torch.compile: %s.", sentence)
        for place, reason in found.given_up:
            logger.warning(
                "torch.compile has compiled %s as often as recompile_limit allows, and runs it uncompiled from then on "
                "where nothing compiled fits (%s): give plugins={'torch_compile': {'dynamic': True}}, batches of one "
                "shape, or a higher recompile_limit.",
                place,
                reason,
            )

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """From here the time is counted."""
        self._begun, self._first_step = time.perf_counter(), run.state.global_step

    @hookimpl
    def on_log(self, run: Run) -> None:
        """Tells listeners how much of the run's time went into compilation (`run.figures`)."""
        if self._watch is not None:
            run.figures["compile_seconds"] = self._watch.found.seconds

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Says what was compiled, and calls the model as before."""
        self._tell(run)
        self._undo()

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Calls the model as before."""
        self._undo()

    @hookimpl
    def on_evaluate(self, run: Run) -> None:
        """The same after an evaluation outside training."""
        self._end_alone(run)

    @hookimpl
    def on_predict(self, run: Run) -> None:
        """The same after a prediction outside training."""
        self._end_alone(run)

    def _end_alone(self, run: Run) -> None:
        if not run.is_training:
            self._tell(run)
            self._undo()
