"""How far two runs are apart, part by part, and where it begins.

A difference of tensors is the largest of its elements divided by the largest element of the reference: of elements
near zero a relative difference would say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain.testing.scenario import Outcome

BUFFER = "trained"
"""The model's buffer that counts."""


@dataclass(frozen=True)
class Finding:
    """One part of a run that is not as it should be.

    Attributes:
        part: "losses", "norms", "log", "weights", "buffers", "predictions", ...
        text: what differs, where first, and by how much.
        first: number of the first entry that differs, from 0, where entries have an order.
    """

    part: str
    text: str
    first: int = 0


def apart(found: float, wanted: float) -> float:
    """The relative difference of two numbers."""
    if found == wanted:
        return 0.0
    return abs(found - wanted) / max(abs(wanted), 1e-12)


def of_tensors(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference of an element by the largest element."""
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def numbers(
    part: str, one: str, found: Sequence[float | None], wanted: Sequence[float | None], tolerance: float
) -> list[Finding]:
    """Numbers in order.

    Args:
        part: of the finding.
        one: what each is: "the loss of micro-batch {}".
        found, wanted: what there is and what should be; None is compared with nothing.
        tolerance: relative.
    """
    if len(found) != len(wanted):
        return [Finding(part, f"there are {len(found)} {part}, not {len(wanted)}")]
    odd = [
        (place, a, b)
        for place, (a, b) in enumerate(zip(found, wanted, strict=True))
        if a is not None and b is not None and not apart(a, b) <= tolerance  # and not a number is odd too
    ]
    if not odd:
        return []
    place, a, b = odd[0]
    more = f"; {len(odd)} of {len(wanted)} differ" if len(wanted) > 1 else ""
    return [Finding(part, f"{one.format(place + 1)} is {a:.6g}, not {b:.6g} ({times(a, b)}){more}", place)]


def times(found: float, wanted: float) -> str:
    """By how much, in words."""
    if wanted and abs(found / wanted - 1) > 0.05:
        return f"{found / wanted:.3g} times as large"
    return f"differs by {apart(found, wanted):.1e}"


def tensors(
    part: str, found: dict[str, Any], wanted: dict[str, Any], tolerance: float, exact_dtype: bool = False
) -> list[Finding]:
    """Tensors, or numbers, by name."""
    made = []
    if odd := sorted(found.keys() ^ wanted.keys()):
        extra = [name for name in odd if name in found]
        what = f"{', '.join(extra[:3])} too many" if extra else f"{', '.join(odd[:3])} missing"
        made.append(Finding(part, f"{part}: {what}{' (and more)' if len(odd) > 3 else ''}"))
    differing = []
    for place, name in enumerate(wanted):
        if name not in found:
            continue
        a, b = torch.as_tensor(found[name]), torch.as_tensor(wanted[name])
        if exact_dtype and a.dtype != b.dtype:
            made.append(Finding(part, f"{part}: {name} is {a.dtype}, not {b.dtype}"))
        elif not (distance := of_tensors(a, b)) <= tolerance:
            differing.append((distance, name, place, a, b))
    if differing:
        distance, name, place, a, b = max(differing, key=lambda each: (each[0], -each[2]))
        made.append(
            Finding(
                part,
                f"{part}: {name} {_by_how_much(a, b, distance)}; {len(differing)} of {len(wanted)} differ",
                place,
            )
        )
    return made


def _by_how_much(found: torch.Tensor, wanted: torch.Tensor, distance: float) -> str:
    if found.shape != wanted.shape:
        return f"has the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if wanted.numel() == 1:
        return f"is {float(found):.6g}, not {float(wanted):.6g}"
    ratio = factor(found, wanted)
    if ratio is not None and abs(ratio - 1) > 0.05:
        return f"is {ratio:.3g} times what it should be"
    return f"differs by {distance:.1e} of its largest element"


def factor(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """The number that `wanted` is multiplied by in `found`; None where there is no such number."""
    a, b = found.detach().cpu().double().flatten(), wanted.detach().cpu().double().flatten()
    if a.shape != b.shape or not float(b @ b):
        return None
    ratio = float(a @ b / (b @ b))
    return ratio if float((a - ratio * b).norm()) <= 1e-3 * float(a.norm()) else None


def run(found: Outcome, wanted: Outcome, tolerance: float) -> list[Finding]:
    """A run against the one that it must be equal to; a resumed one against the end of the one that went on."""
    one, first = found.ranks[0], wanted.ranks[0]
    losses, expected = found.losses, wanted.losses
    if found.scenario.resume is not None and 0 < len(losses) < len(expected):
        expected = expected[-len(losses) :]
    made = numbers("losses", "the loss of micro-batch {}", losses, expected, tolerance)
    norms = first.norms[-len(one.norms) :] if found.scenario.resume is not None else first.norms
    made += numbers("norms", "the gradient norm of update {}", one.norms, norms, tolerance)
    if any(a is None and b is not None for a, b in zip(one.norms, norms, strict=False)):
        made.append(Finding("norms", "update() tells no gradient norm (Update.grad_norm), though it clips"))
    stepped = first.stepped[-len(one.stepped) :] if found.scenario.resume is not None else first.stepped
    if one.stepped != stepped:
        odd = [
            number
            for number, pair in enumerate(zip(one.stepped, stepped, strict=False))
            if pair[0] != pair[1]
        ]
        place = odd[0] if odd else min(len(one.stepped), len(stepped))
        what = "steps, and must be skipped" if odd and one.stepped[place] else "is skipped, and must step"
        made.append(Finding("stepped", f"update {place + 1} {what} (Update.stepped)", place))
    made += _log(one.log, first.log, tolerance)
    if found.scenario.twice and not made:
        made += numbers(
            "losses of the second training",
            "the loss of micro-batch {} of the second training",
            found.again,
            wanted.again,
            tolerance,
        )
    made += weights(found.tensors["weights"], wanted.tensors["weights"], tolerance)
    return made + predictions(found, wanted, tolerance)


def weights(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> list[Finding]:
    """Of a model, and its buffer by itself."""

    def part(entries: dict[str, Any], buffer: bool) -> dict[str, Any]:
        return {name: value for name, value in entries.items() if (name == BUFFER) == buffer}

    made = tensors("weights", part(found, False), part(wanted, False), tolerance, True)
    return made + tensors("buffers", part(found, True), part(wanted, True), 0.0, True)


def predictions(found: Outcome, wanted: Outcome, tolerance: float) -> list[Finding]:
    """Row by row, and the metrics of them."""
    here, there = found.tensors["predictions"], wanted.tensors["predictions"]
    order, expected = here["numbers"].flatten().tolist(), there["numbers"].flatten().tolist()
    if order != expected:
        return [
            Finding("order", f"predictions are those of the rows {_shown(order)}, not {_shown(expected)}")
        ]
    if made := tensors("predictions", here, there, tolerance):
        return made  # the metrics are those of other predictions
    for name, value in wanted.ranks[0].metrics.items():
        if name not in found.ranks[0].metrics:
            made.append(Finding("metrics", f"the metric {name} is missing"))
        else:
            made += numbers(
                "metrics", f"the metric {name}", [found.ranks[0].metrics[name]], [value], tolerance
            )
    return made


def _log(found: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float) -> list[Finding]:
    """Rows, keys and numbers. Losses stand there rounded to four digits."""
    if len(found) != len(wanted):
        return [Finding("log", f"the log has {len(found)} rows, not {len(wanted)}")]
    made = []
    for number, (row, expected) in enumerate(zip(found, wanted, strict=True)):
        if row.keys() != expected.keys():
            made.append(Finding("log", f"row {number + 1} of the log has {', '.join(row)}", number))
            continue
        for key, value in expected.items():
            near = abs(row[key] - value) <= 1.01e-4 if key == "loss" else row[key] == value
            if not near and not apart(row[key], value) <= tolerance:
                text = f"{key} in row {number + 1} of the log is {row[key]:.6g}, not {value:.6g}"
                made.append(Finding("schedule" if key == "learning_rate" else "log", text, number))
    return sorted(made, key=lambda finding: finding.part != "schedule")[:1]


def _shown(order: list[Any]) -> str:
    return f"{', '.join(map(str, order[:8]))}, ... ({len(order)} rows)" if len(order) > 8 else str(order)
