"""An accelerator's own clock: what the host's says of forward and backward is only how long they took to ask for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

EVERY = 20  # updates, of which one is timed


class DeviceTiming:
    """Times one update in `EVERY` by events in the device's stream, which nobody waits for.

    The time between two events is that of the work between them, or of a device that has none: where it waits for
    the host to fetch a batch, that is in "data".

    Args:
        event: makes an event that keeps the time.
    """

    def __init__(self, event: Callable[[], Any]) -> None:
        self._event = event
        self._updates = 0
        self._last = ""
        self._recorded: list[tuple[str, Any]] | None = None  # of the update under way, where it is timed
        self._pending: list[list[tuple[str, Any]]] = []
        self.milliseconds: dict[str, float] = {}

    @classmethod
    def of(cls, device: torch.device) -> DeviceTiming | None:
        """The clock of a device; None for the host's own, and for one whose backend keeps no time."""
        if device.type in ("cpu", "xla", "meta"):
            return None
        kind = getattr(torch.get_device_module(device), "Event", None)
        if kind is None:
            return None
        try:
            kind(enable_timing=True)
        except (TypeError, RuntimeError):
            return None
        return cls(lambda: kind(enable_timing=True))

    def lap(self, part: str) -> None:
        """The host has asked for a part. An update's last is "optimizer"; the next begins after "other"."""
        if self._recorded is not None:
            self._record(part)
            if part == "optimizer":
                self._pending.append(self._recorded)
                self._recorded = None
        elif part == "other" and self._last == "optimizer":
            self._updates += 1
            if self._updates % EVERY == 1:
                self._read()
                self._recorded = []
                self._record(part)
        self._last = part

    def _record(self, part: str) -> None:
        event = self._event()
        event.record()
        assert self._recorded is not None
        self._recorded.append((part, event))

    def _read(self) -> None:
        """Adds the updates that the device is through with."""
        for recorded in [found for found in self._pending if found[-1][1].query()]:
            self._pending.remove(recorded)
            for (_, before), (part, after) in pairwise(recorded):
                self.milliseconds[part] = self.milliseconds.get(part, 0.0) + before.elapsed_time(after)

    def shares(self) -> dict[str, float]:
        """How an update's time is shared out; empty as long as none has been timed."""
        self._read()
        whole = sum(self.milliseconds.values())
        return {part: time / whole for part, time in self.milliseconds.items()} if whole else {}
