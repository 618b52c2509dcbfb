"""How fast a counter grows, and how long it has yet to go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# What lies further back counts less and less: by the later of so many seconds and so many counts.
SECONDS = 30.0
COUNTS = 20.0


@dataclass
class Pause:
    """What interrupts the counter from time to time: an evaluation, a checkpoint.

    Attributes:
        every: counts from one to the next; 0 where nobody knows.
        times: how often it has happened.
        seconds: how long all of them took.
    """

    every: float = 0.0
    times: int = 0
    seconds: float = 0.0

    def ahead(self, count: int, total: int) -> int:
        """How many are to come."""
        if self.every <= 0:
            return 0
        return math.floor(total / self.every + 1e-9) - math.floor(count / self.every + 1e-9)


class Clock:
    """Looks at a counter now and then, and tells its rate without the pauses, and the time left with them.

    The time up to the first count is not typical (workers start, kernels are compiled): it serves until there is
    another, and is forgotten then.

    Args:
        count: where the counter stands.
        pauses: what will interrupt it, by name.
        now: gives the time in seconds.
    """

    def __init__(
        self,
        count: int = 0,
        pauses: dict[str, Pause] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self.began = now()
        self.count = count
        self.pauses = pauses or {}
        self._since = self.began  # when the counter was last seen to grow
        self._intervals = 0
        self._counted = self._seconds = 0.0
        self._paused: str | None = None

    def look(self, count: int) -> None:
        """Notes where the counter stands.

        One that went back is not noted: `global_step` does while listeners are told of a checkpoint written meanwhile.
        """
        if self._paused is None and count > self.count:
            now = self._now()
            self._add(count - self.count, now - self._since)
            self.count, self._since = count, now

    def pause(self, name: str, count: int) -> None:
        """Time does not count from here; what came since the counter grew belongs to the pause."""
        if self._paused is not None:
            return
        if count > self.count:
            now, grown, rate = self._now(), count - self.count, self.rate
            seconds = now - self._since if rate is None else min(now - self._since, grown / rate)
            self._add(grown, seconds)
            self.count, self._since = count, self._since + seconds
        self._paused = name

    def resume(self) -> None:
        """Time counts again."""
        if self._paused is not None:
            pause = self.pauses.setdefault(self._paused, Pause())
            now = self._now()
            pause.times += 1
            pause.seconds += now - self._since
            self._since, self._paused = now, None

    @property
    def rate(self) -> float | None:
        """Counts a second, of late; None where none has been seen."""
        return self._counted / self._seconds if self._seconds > 0 and self._counted > 0 else None

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return self._now() - self.began

    def left(self, total: int) -> float | None:
        """Seconds until the counter reaches `total`, with the pauses to come; None where there is no telling."""
        rate = self.rate
        if rate is None:
            return None
        under_way = self._now() - self._since
        seconds = max(total - self.count, 0) / rate
        if self._paused is None:
            seconds -= min(under_way, 1 / rate, seconds)
        for name, pause in self.pauses.items():
            if pause.times:
                usual = pause.seconds / pause.times
                seconds += pause.ahead(self.count, total) * usual
                if name == self._paused:
                    seconds += max(usual - under_way, 0.0)
        return seconds

    def is_rough(self, total: int) -> bool:
        """Whether `left` rests on little: on a count or two, or on pauses to come of which there has been none."""
        return self._intervals < 3 or any(
            not pause.times and pause.ahead(self.count, total) for pause in self.pauses.values()
        )

    def _add(self, counted: int, seconds: float) -> None:
        kept = max(math.exp(-seconds / SECONDS), math.exp(-counted / COUNTS))
        if self._intervals == 1:
            kept = 0.0
        self._intervals += 1
        self._counted = self._counted * kept + counted
        self._seconds = self._seconds * kept + seconds
