"""torch.profiler over some updates of a run: a trace for the browser, and the dearest operators in the terminal."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.callback.operators import Operators

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class ProfilerOptions:
    """Options of `profiler`; the first four are those of `torch.profiler.schedule`, in updates.

    Attributes:
        wait: so many are left alone, at the beginning of the run and before each further window.
        warmup: so many are profiled, and what they gave is dropped; at least one, since the first is not like the rest.
        active: so many are profiled and kept.
        repeat: how many such windows there are; 0 for as many as the run has room for.
        memory: note what is allocated and freed; on CUDA a snapshot for pytorch.org/memory_viz is written as well.
        shapes: note the shapes of operators' inputs.
        stacks: note the Python lines that called them.
        top: how many operators the table at the end has.
        folder: where the traces go; a relative one stands in `output_dir`.
        ranks: "first" for rank 0 alone, "all" for a trace of every rank.
    """

    wait: int = 5
    warmup: int = 2
    active: int = 3
    repeat: int = 1
    memory: bool = False
    shapes: bool = False
    stacks: bool = False
    top: int = 15
    folder: str = "profile"
    ranks: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        for name, least in (("wait", 0), ("warmup", 1), ("active", 1), ("repeat", 0), ("top", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.ranks not in ("first", "all"):
            raise ValueError(f"ranks={self.ranks!r} must be 'first' or 'all'.")


class Profiler:
    """Profiles windows of updates. Outside of them the profiler is not there, and an update costs a comparison.

    A window ends after an update: what is due after it (a row of the log, an evaluation, a checkpoint) is in the trace
    before the next one.

    Attributes:
        traces: the files that were written.
    """

    def __init__(self, options: ProfilerOptions | None = None) -> None:
        self.options = options or ProfilerOptions()
        self._reset()

    def _reset(self) -> None:
        self.traces: list[Path] = []
        self._profile: Any = None
        self._windows = 0
        self._next: int | None = None  # the update after which something begins or ends
        self._kept_from = 0
        self._operators = Operators()

    @hookimpl(trylast=True)
    def on_train_begin(self, run: Run) -> None:
        """Sets the first window."""
        self._reset()
        if run.is_main_process or self.options.ranks == "all":
            self._next = run.state.global_step + self.options.wait
            if self.options.wait == 0:
                self._begin(run)

    @hookimpl(trylast=True)
    def on_step_end(self, run: Run) -> None:
        """Begins a window, goes on in it, or ends it."""
        if self._profile is not None:
            self._profile.step()
            if run.state.global_step == self._next:
                self._end(run)
        elif run.state.global_step == self._next:
            self._begin(run)

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Ends a window that the run was too short for, and prints the table."""
        if self._profile is not None:
            self._end(run)
        elif not self.traces and self._next is not None:
            logger.warning(
                "profiler: the run ended with update %d, before its window began after update %d: lower wait.",
                run.state.global_step,
                self._next,
            )
        if self._operators.updates and run.is_main_process and self.options.top:
            self._operators.show(self.options.top, str(self.traces[-1]))

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Keeps what there is of a window; often it is what one is looking for."""
        if self._profile is not None:
            self._end(run)

    def _begin(self, run: Run) -> None:
        options, step = self.options, run.state.global_step
        activities = [ProfilerActivity.CPU]
        if run.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            if options.memory:
                torch.cuda.memory._record_memory_history(stacks="python" if options.stacks else "all")
        elif run.device.type == "xpu":
            activities.append(ProfilerActivity.XPU)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=options.warmup, active=options.active, repeat=1),
            on_trace_ready=lambda made: self._keep(run, made),
            profile_memory=options.memory,
            record_shapes=options.shapes or options.memory,
            with_stack=options.stacks,
        )
        self._kept_from = step + options.warmup + 1
        self._next = step + options.warmup + options.active
        self._profile.start()

    def _end(self, run: Run) -> None:
        made, self._profile = self._profile, None
        made.stop()
        if run.device.type == "cuda" and self.options.memory:
            torch.cuda.memory._record_memory_history(enabled=None)
        self._windows += 1
        more = self.options.repeat == 0 or self._windows < self.options.repeat
        self._next = run.state.global_step + self.options.wait if more else None
        if more and self.options.wait == 0 and run.state.global_step < run.state.max_steps:
            self._begin(run)

    def _keep(self, run: Run, made: Any) -> None:
        """Writes the trace of a window, and notes what its operators took."""
        last = run.state.global_step
        if last < self._kept_from:
            return  # the run ended in the warm-up
        folder = Path(run.args.output_dir) / self.options.folder
        folder.mkdir(parents=True, exist_ok=True)
        name = f"rank{run.processes.rank}-updates-{self._kept_from}-{last}"
        path = folder / f"{name}.pt.trace.json.gz"
        made.export_chrome_trace(str(path))
        self.traces.append(path)
        if run.device.type == "cuda" and self.options.memory:
            dump: Any = torch.cuda.memory._dump_snapshot
            dump(str(folder / f"{name}.memory.pickle"))
        self._operators.add(made.key_averages(), last - self._kept_from + 1)
