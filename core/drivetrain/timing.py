"""Where the time of a run goes: every second of `train()` belongs to one part, and each plugin's own to it.

The clock is read where one part ends and the next begins. What a plugin takes is taken out of the part that it is
called in, and so is an evaluation, a row of the log or a checkpoint, wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from drivetrain.device_timing import DeviceTiming
from drivetrain.gathering import gather_objects
from drivetrain.shares import PARTS, STEPS

if TYPE_CHECKING:
    import torch


class Timing:
    """The seconds of a run, by part and by plugin.

    Attributes:
        seconds: by part, on the host's clock.
        plugins: by plugin, in all of its hooks together.
        ranks: seconds by part of every rank, once training has ended.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.plugins: dict[str, float] = {}
        self.ranks: list[dict[str, float]] = []
        self.mark = self.began = perf_counter()
        self.device: DeviceTiming | None = None

    def lap(self, part: str) -> None:
        """What has passed since the last lap belongs to this part."""
        now = perf_counter()
        self.seconds[part] += now - self.mark
        self.mark = now
        if self.device is not None:
            self.device.lap(part)

    def start(self, device: torch.device) -> None:
        """The first epoch is about to begin; all before was set-up."""
        self.device = DeviceTiming.of(device)
        self.lap("setup")

    @contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """What happens in here belongs to this part, and not to the one that is under way."""
        mark, before = self.mark, perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += self._leave(mark, before)

    def leave_plugin(self, name: str, mark: float, before: float) -> None:
        """A plugin has been called.

        Args:
            name: whose hook it was.
            mark, before: this clock's mark, and the time, when it was called.
        """
        self.plugins[name] = self.plugins.get(name, 0.0) + self._leave(mark, before)

    def _leave(self, mark: float, before: float) -> float:
        """The seconds since `before`, less those that belong to something within; none counts twice."""
        passed = perf_counter() - before
        own = passed - (self.mark - mark)
        self.mark = mark + passed
        return own

    def timed(self, function: Callable[..., object], name: str) -> Callable[..., object]:
        """A plugin's hook, which notes what it takes."""

        def call(*arguments: Any) -> None:
            mark, before = self.mark, perf_counter()
            function(*arguments)
            self.leave_plugin(name, mark, before)

        return call

    def finish(self, processes: Any) -> None:
        """Training has ended: tells all ranks what each has spent. A collective."""
        self.ranks = gather_objects(self.parts(), processes)

    def parts(self) -> dict[str, float]:
        """Seconds by part until now, in their order; they add up to what has passed. Parts of 0 are left out."""
        self.lap("other")
        found = {**self.seconds, "plugins": sum(self.plugins.values())}
        shares = self.device.shares() if self.device is not None else {}
        if shares:
            steps = sum(found[part] for part in STEPS)
            found.update({part: steps * shares.get(part, 0.0) for part in STEPS})
        else:
            found["logging"] += found["waiting"]  # the host itself computes
            found["waiting"] = 0.0
        if found["backward"] and not found["forward"]:  # a training_step of the user's own
            found = {("forward and backward" if key == "backward" else key): found[key] for key in found}
        return {part: seconds for part, seconds in found.items() if seconds}
