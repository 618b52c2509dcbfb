"""Floating-point operations of an update, counted by torch as they are done, and how many are done a second."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain_plugins.callback.peak_flops import peak

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class FlopsOptions:
    """Options of `flops`.

    Attributes:
        every: updates from one that is counted to the next; the second of a run is the first to be counted.
        peak: what the device can do at most, in operations a second; 0 for what is known of it.
    """

    every: int = 100
    peak: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 2:
            raise ValueError(
                f"every={self.every} must be at least 2: an update that is counted is not timed."
            )
        if self.peak < 0:
            raise ValueError(f"peak={self.peak} must not be negative.")


class Flops:
    """Counts one update in `every`, and times the others, from their first forward to the end of the update.

    What is counted is what this rank does: matrix products, convolutions and attention, in the forward, the backward
    and recomputations; torch counts no element-wise work. The time of an update is the device's own.

    Attributes:
        per_update: operations of an update, the mean of those counted; None before the first.
        per_second: of this rank, over the updates that were timed; None before the first.
    """

    def __init__(self, options: FlopsOptions | None = None) -> None:
        self.options = options or FlopsOptions()
        self._reset()

    def _reset(self) -> None:
        self._counter: Any = None
        self._counted: list[int] = []
        self._clock: Clock | None = None
        self._first: int | None = None
        self._begins = True
        self._peak: float | None = None

    @property
    def per_update(self) -> float | None:
        """Operations of an update."""
        return sum(self._counted) / len(self._counted) if self._counted else None

    @property
    def per_second(self) -> float | None:
        """Operations a second, while updates are made."""
        seconds = self._clock.mean() if self._clock is not None else None
        return self.per_update / seconds if self.per_update is not None and seconds else None

    @hookimpl
    def on_train_begin(self, run: Run) -> None:
        """Begins anew."""
        self._reset()
        self._clock = Clock(run.device)
        self._first = run.state.global_step + 2  # the first update warms up
        policy = run.precision.policy
        self._peak = self.options.peak or peak(run.device, policy.compute or policy.parameter)

    @hookimpl(trylast=True)
    def on_micro_batch(self, run: Run) -> None:
        """At the first of an update: counts it, or takes the time."""
        if not self._begins or self._clock is None or self._first is None:
            return
        self._begins = False
        update = run.state.global_step + 1
        if update >= self._first and (update - self._first) % self.options.every == 0:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        elif update >= self._first:
            self._clock.start()

    @hookimpl(tryfirst=True)
    def on_step_end(self, run: Run) -> None:
        """The update is done."""
        self._begins = True
        if self._counter is not None:
            self._counted.append(self._stop_counting())
        elif self._clock is not None:
            self._clock.stop()

    @hookimpl(tryfirst=True)
    def on_log(self, run: Run, logs: dict[str, Any]) -> None:
        """`flops_per_update`, `flops_per_second` and, where the peak is known, `flops_of_peak`, into the figures."""
        if "loss" in logs and self.per_second is not None:
            run.figures.update(self._figures(""))

    @hookimpl
    def on_stage_end(self, run: Run, stage: str, metrics: dict[str, float]) -> None:
        """The same into the metrics of training."""
        if stage != "train":
            return
        if self.per_update == 0:
            logger.warning(
                "flops: torch counted no operation; it knows matrix products, convolutions and attention."
            )
        elif self.per_second is None:
            logger.warning("flops: the run was too short; the second update is counted and the third timed.")
        else:
            metrics.update(self._figures("train_"))

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Takes the counter off."""
        if self._counter is not None:
            self._stop_counting()

    def _figures(self, prefix: str) -> dict[str, float]:
        per_update, per_second = self.per_update, self.per_second
        assert per_update is not None
        assert per_second is not None
        found = {f"{prefix}flops_per_update": per_update, f"{prefix}flops_per_second": per_second}
        if self._peak:
            found[f"{prefix}flops_of_peak"] = per_second / self._peak
        return found

    def _stop_counting(self) -> int:
        counter, self._counter = self._counter, None
        counter.__exit__(None, None, None)
        return int(counter.get_total_flops())


class Clock:
    """The mean time between `start` and `stop`: by the device's own events where it has them.

    Args:
        device: whose work is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = device.type in ("cuda", "xpu")
        self._device = device
        self._started: Any = None
        self._waiting: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._count = 0

    def start(self) -> None:
        """Work begins."""
        self._started = self._event() if self._events else time.perf_counter()

    def stop(self) -> None:
        """It has ended, or on a device has been asked for."""
        started, self._started = self._started, None
        if started is None:
            return
        if not self._events:
            self._add(time.perf_counter() - started)
            return
        self._waiting.append((started, self._event()))
        if len(self._waiting) > 8:
            self._read(wait=False)

    def mean(self) -> float | None:
        """Seconds; None before the first. Waits for the device."""
        self._read(wait=True)
        return self._seconds / self._count if self._count else None

    def _event(self) -> Any:
        made: Any = torch.Event(self._device, enable_timing=True)
        made.record()
        return made

    def _read(self, wait: bool) -> None:
        while self._waiting:
            started, ended = self._waiting[0]
            if wait:
                ended.synchronize()
            elif not ended.query():
                return
            self._add(started.elapsed_time(ended) / 1000)
            self._waiting.pop(0)

    def _add(self, seconds: float) -> None:
        self._seconds += seconds
        self._count += 1
