"""What is drawn of a run: series over steps, by name, each with the epoch and the time of its points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drivetrain.record import Recorded
from drivetrain.shares import STEPS
from drivetrain_plugins.report.thinning import finite, thinned

# Rows of the log hold these about a whole stage, and the page tells them elsewhere.
_OF_A_STAGE = ("_runtime", "_samples_per_second", "_steps_per_second", "_flos")
_PLACED = {"loss", "learning_rate", "epoch"}


@dataclass
class Series:
    """Points of one quantity.

    Attributes:
        steps, values: the points.
        epochs, times: of each point, the time in seconds since the run began; None where it is not known.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    epochs: list[float | None] = field(default_factory=list)
    times: list[float | None] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For the page, with fewer points where they are many."""
        kept = thinned(self.values)
        found: dict[str, Any] = {
            "step": [self.steps[place] for place in kept],
            "y": [_digits(self.values[place]) for place in kept],
            "epoch": [_digits(self.epochs[place]) for place in kept],
            "time": [_digits(self.times[place]) for place in kept],
        }
        if len(kept) < len(self.values):
            found["of"] = len(self.values)
        return found


def series_of(run: Recorded) -> dict[str, Series]:
    """Every quantity of a run, in the order of its first point: `loss`, `eval/accuracy`, `figures/grad_norm`, ..."""
    found: dict[str, Series] = {}
    before: dict[str, Any] | None = None
    for row in run.logs:
        time = finite(row.get("time"))
        if time is not None and run.began is not None:
            time -= run.began
        place = row.get("step", 0), finite(row["logs"].get("epoch")), time
        for name, value in _quantities(row):
            if value is None and not isinstance(row["logs"].get(name), float):
                continue
            _add(found, name, place, value)
        if "seconds" in row:
            for part, value in _between(before, row):
                _add(found, f"parts/{part}", place, value)
            before = row
    return found


def _quantities(row: Mapping[str, Any]) -> Iterable[tuple[str, float | None]]:
    for name, value in row["logs"].items():
        if name == "epoch" or name.endswith(_OF_A_STAGE) or name == "train_loss":
            continue
        if name in _PLACED:
            yield name, finite(value)
        elif name.startswith("eval_"):
            yield f"eval/{name.removeprefix('eval_')}", finite(value)
        else:
            yield f"also/{name}", finite(value)
    for name in ("grad_norm", "rows_per_second"):
        if name in row.get("figures", {}):
            yield f"figures/{name}", finite(row["figures"][name])
    for name, value in row.get("memory", {}).items():
        yield f"memory/{name}", finite(value)


def _between(before: Mapping[str, Any] | None, row: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Milliseconds that an update took, by part, since the row before that told it."""
    if before is None or before["part"] != row["part"]:
        return
    updates = row["step"] - before["step"]
    if updates < 1:
        return
    for part in (*STEPS, "forward and backward", "plugins", "logging"):
        if part in row["seconds"]:
            spent = row["seconds"][part] - before["seconds"].get(part, 0.0)
            yield part, max(0.0, 1000.0 * spent / updates)


def _add(
    found: dict[str, Series], name: str, place: tuple[int, float | None, float | None], value: float | None
) -> None:
    series = found.setdefault(name, Series())
    series.steps.append(place[0])
    series.epochs.append(place[1])
    series.times.append(place[2])
    series.values.append(value)


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
