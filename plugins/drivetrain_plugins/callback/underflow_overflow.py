"""`debug="underflow_overflow"`: NaN and infinity are traced to the module where they began."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drivetrain.errors import DrivetrainError, NonFiniteError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.callback.fault_report import show
from drivetrain_plugins.callback.frames import Fault, Frame, find_fault
from drivetrain_plugins.callback.magnitudes import Magnitude, measure, read
from drivetrain_plugins.callback.module_tracer import ModuleTracer, clean

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class UnderflowOverflowOptions:
    """Options of `underflow_overflow`; the first three are those of 4.34.0's `DebugUnderflowOverflow`.

    Attributes:
        max_frames_to_save: how many calls of modules, and gradients, the report shows.
        trace_batch_nums: micro-batches, from 0, that are printed whole; in them nothing is an error.
        abort_after_batch_num: the run ends after this micro-batch.
        ignore: patterns of module names (`*.mask`) whose numbers may be infinite or NaN.
    """

    max_frames_to_save: int = 21
    trace_batch_nums: Sequence[int] = ()
    abort_after_batch_num: int | None = None
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.max_frames_to_save < 1:
            raise ValueError(f"max_frames_to_save={self.max_frames_to_save} must be at least 1.")
        if isinstance(self.ignore, str):
            raise ValueError(f"ignore={self.ignore!r} must be a list of patterns.")


class UnderflowOverflow:
    """Measures every module's weights, inputs and outputs, their gradients, and the weights after each update.

    What is measured is read after the backward pass of a micro-batch and after an update: two waits for the device. The
    first tensor that is not finite, in the order in which they came to be, is where it began: the last frames before it
    are printed on stderr, and written to `underflow_overflow-rank0.txt` in `output_dir`. Then all ranks end, before the
    gradients are used.
    """

    reads_all_gradients = False  # each rank looks at what passes through its own modules

    def __init__(self, options: UnderflowOverflowOptions | None = None) -> None:
        self.options = options or UnderflowOverflowOptions()
        self._run: Run | None = None
        self._tracer: ModuleTracer | None = None
        self._last: deque[Frame] = deque(maxlen=self.options.max_frames_to_save)
        self._traced: list[Frame] = []

    # -- when --------------------------------------------------------------------------------------------

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Puts the hooks on."""
        self._close()
        self._run = run
        self._last.clear()
        self._tracer = ModuleTracer(run.model, self._forward_done)

    @hookimpl(tryfirst=True)
    def on_substep_end(self, run: Run) -> None:
        """A micro-batch is done."""
        self._look(run)
        self._end_of_batch()

    @hookimpl(tryfirst=True)
    def on_gradients_ready(self, run: Run) -> None:
        """The last micro-batch of an update is done."""
        self._look(run)

    @hookimpl(tryfirst=True)
    def on_step_end(self, run: Run) -> None:
        """An update is done: its weights are looked at."""
        assert self._tracer is not None
        self._settle(run, None if self._is_traced else self._fault_of_update(run))
        self._tracer.weights_changed()
        self._end_of_batch()

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Takes the hooks off."""
        self._close()

    @hookimpl(tryfirst=True)
    def on_exception(self, run: Run, error: BaseException) -> None:
        """An error of the model's own may be one of NaN: what was measured before it is looked at."""
        if self._tracer is not None and not isinstance(error, NonFiniteError):
            fault = self._find(run)
            if fault is not None:
                logger.error("Before this error: %s", self._show(run, fault))
        self._close()

    def _close(self) -> None:
        if self._tracer is not None:
            self._tracer.close()
        self._tracer = self._run = None

    # -- what --------------------------------------------------------------------------------------------

    @property
    def _is_traced(self) -> bool:
        assert self._tracer is not None
        return self._tracer.batch in self.options.trace_batch_nums

    def _forward_done(self) -> None:
        """In training there is a backward pass to come, and the ranks to meet; an evaluation is looked at here."""
        run = self._run
        assert run is not None
        if not run.model.training:
            fault = self._find(run)
            if fault is not None:
                raise NonFiniteError(self._show(run, fault))

    def _look(self, run: Run) -> None:
        """Reads what was measured in a micro-batch, and raises on all ranks where one has found something."""
        fault = self._find(run)
        sentence = self._show(run, fault) if fault is not None else None
        loss = run.loss
        if sentence is None and loss is not None and not self._is_traced and not math.isfinite(float(loss)):
            sentence = (
                f"The loss is {float(loss)}, while every module's outputs and gradients are finite: it is made outside "
                f"of the model, or its infinity has no gradient{self._where(run, 1)}."
            )
        self._settle(run, sentence)

    def _settle(self, run: Run, sentence: str | None) -> None:
        """Raises what this rank has found; on the others, that it has. A collective."""
        found = [int(sentence is not None)]
        if run.processes.world_size > 1:
            found = run.strategy.collect(torch.tensor(found, device=run.device)).tolist()
        if sentence is not None:
            raise NonFiniteError(sentence)
        if any(found):
            ranks = [str(rank) for rank, flag in enumerate(found) if flag]
            raise NonFiniteError(
                f"NaN or infinity was found on rank {', '.join(ranks)}, and not on rank {run.processes.rank}: see the "
                f"report underflow_overflow-rank{ranks[0]}.txt in output_dir."
            )

    def _find(self, run: Run) -> Fault | None:
        tracer = self._tracer
        assert tracer is not None
        order, frames = tracer.order, tracer.frames
        tracer.forget()
        read([magnitude for _, magnitude in order])
        if self._is_traced:
            self._traced += frames
            return None
        fault = find_fault(order, tuple(self.options.ignore))
        if fault is not None and fault.frame.backward and loss_scale(run) > 1:
            fault = None  # the scaler skips this update and lowers the scale: nothing is wrong
        if fault is None:
            self._last.extend(frames)
        elif fault.frame in frames:
            self._last.extend(frames[: frames.index(fault.frame) + 1])
        else:  # of a module that was still running
            self._last.extend((*frames, fault.frame))
        return fault

    def _show(self, run: Run, fault: Fault, updates: int = 1) -> str:
        """Prints and writes the report.

        Args:
            run: the run.
            fault: what was found.
            updates: 1 in the midst of an update, 0 once it has been counted.

        Returns:
            The sentence of the error.
        """
        file = Path(run.args.output_dir) / f"underflow_overflow-rank{run.processes.rank}.txt"
        title = f"{fault.sentence}{self._where(run, updates)}."
        show(title, tuple(self._last), fault.magnitude, file)
        return f"{title} What was before it: {file}."

    def _where(self, run: Run, updates: int) -> str:
        assert self._tracer is not None
        where = f", update {run.state.global_step + updates}, micro-batch {self._tracer.batch}"
        return where + (f", on rank {run.processes.rank}" if run.processes.world_size > 1 else "")

    def _end_of_batch(self) -> None:
        tracer, after = self._tracer, self.options.abort_after_batch_num
        assert tracer is not None
        done = tracer.batch
        if self._traced:
            show(f"Micro-batch {done}, as trace_batch_nums asks.", self._traced, None, None)
            self._traced = []
        tracer.batch += 1
        if after is not None and done >= after:
            raise DrivetrainError(
                f"The run ends after micro-batch {done}, as abort_after_batch_num={after} of "
                "debug='underflow_overflow' asks."
            )

    # -- the update --------------------------------------------------------------------------------------

    def _fault_of_update(self, run: Run) -> str | None:
        """Whether finite gradients have a norm that is not, or an update by them has left such a weight."""
        update, optimizer = run.update, run.optimizer
        assert update is not None
        if not update.stepped:
            return None
        model = run.model
        if update.grad_norm is not None and not math.isfinite(float(update.grad_norm)):
            norm = Magnitude(
                "norm of all gradients", "1", "float32", update.grad_norm.detach().float().expand(3)
            )
            sentence = (
                f"The norm of the gradients is {float(update.grad_norm)}, though each of them is finite: "
            )
            sentence += "their squares overflow, or their sum over micro-batches does"
            return self._blame(run, type(model).__name__, norm, sentence)
        named = [(clean(name), weight) for name, weight in model.named_parameters()]
        found = [(name, weight, measure(name, shard(weight))) for name, weight in named]
        read([measured for _, _, measured in found if measured is not None])
        for name, weight, measured in found:
            if measured is None or measured.is_finite:
                continue
            state = optimizer.state.get(weight, {}) if optimizer is not None else {}
            bad = [
                key
                for key, value in state.items()
                if isinstance(value, torch.Tensor) and not bool(torch.isfinite(shard(value)).all())
            ]
            sentence = (
                f"{measured.fault} began in the optimizer's update ({type(optimizer).__name__}): in the weight {name}, "
                "from gradients that are finite"
            )
            if update.grad_norm is not None:
                sentence += f" and of norm {float(update.grad_norm):.2e}"
            if bad:
                sentence += f"; of the optimizer's state {', '.join(bad)} is not finite either"
            if optimizer is not None:
                sentence += f"; the learning rate of its group is {_learning_rate(optimizer, weight):.2e}"
            return self._blame(run, "the update", measured, sentence)
        return None

    def _blame(self, run: Run, kind: str, measured: Magnitude, sentence: str) -> str:
        assert self._tracer is not None
        read([measured])
        frame = Frame("", kind, self._tracer.batch, magnitudes=[measured])
        self._last.append(frame)
        return self._show(run, Fault(frame, measured, sentence), updates=0)


def _learning_rate(optimizer: torch.optim.Optimizer, weight: Any) -> float:
    """That of the weight's group; of the first one, where a strategy has put another tensor in its place."""
    for group in optimizer.param_groups:
        if any(found is weight for found in group["params"]):
            return float(group["lr"])
    return float(optimizer.param_groups[0]["lr"])


def shard(tensor: Any) -> torch.Tensor:
    """What of a tensor lies on this rank."""
    found: torch.Tensor = getattr(tensor, "ds_tensor", tensor)
    return found.to_local() if hasattr(found, "to_local") else found


def loss_scale(run: Run) -> float:
    """What the gradients are multiplied by in the backward pass; more than 1 where it is not known."""
    if run.precision.policy.loss_scale is None:
        engine = getattr(run.strategy, "engine", None)
        return float(getattr(getattr(engine, "optimizer", None), "loss_scale", 1.0) or 1.0)
    scaler: Any = getattr(run.strategy, "scaler", None)
    if scaler is not None:
        return float(scaler.get_scale())
    own: Any = getattr(run.strategy, "loss_scale", None)
    return float(getattr(own, "scale", 2.0))
