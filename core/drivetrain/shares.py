"""The parts of a run's time, and how shares and durations are said. Light, since reports need no torch."""

from __future__ import annotations

from collections.abc import Mapping

# The order in which they are shown. "waiting" is for the device, where a row of the log is read.
PARTS = (
    *("setup", "data", "forward", "backward", "optimizer"),
    *("waiting", "logging", "evaluation", "saving", "plugins", "other"),
)
# What an update is made of; an accelerator's own clock knows better how it is shared out.
STEPS = ("data", "forward", "backward", "optimizer", "waiting", "other")
# Of the updates' own time: what is waited less than this is not the bottleneck.
BOTTLENECK = 0.2


def share_of_data(parts: Mapping[str, float]) -> float:
    """How much of the updates' own time was spent waiting for data."""
    steps = sum(parts.get(part, 0.0) for part in (*STEPS, "forward and backward", "plugins"))
    return parts.get("data", 0.0) / steps if steps else 0.0


def percent(share: float) -> str:
    """`"31 %"`, `"0.4 %"`."""
    return f"{share:.0%}".replace("%", " %") if share >= 0.0995 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """`"8.3 ms"`, `"4.2 s"`, `"12 min 3 s"`, `"3 h 05 min"`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
