"""How far two runs are apart.

A difference of tensors is the largest of its elements divided by the largest element of the reference: of
elements near zero a relative difference would say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drivetrain.checkpoint import load_checkpoint
from drivetrain.testing.comparing import of_tensors
from strategies.model import EVALUATED_ROWS, build
from strategies.scenario import Outcome, Scenario

TOLERANCE = {"fp32": 2e-4, "bf16": 2e-2}


@dataclass
class Difference:
    """Largest relative differences, and what is wrong besides.

    Attributes:
        losses: of the micro-batches, of the log, of the evaluations.
        weights: of the final weights.
        optimizer: of the state in the last checkpoint.
        predictions: of the final prediction.
        wrong: sentences; one is a failure.
    """

    losses: float = 0.0
    weights: float = 0.0
    optimizer: float = 0.0
    predictions: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def largest(self) -> float:
        """Of all."""
        return max(self.losses, self.weights, self.optimizer, self.predictions)

    def check(self, tolerance: float, optimizer: bool = True) -> Difference:
        """Adds a sentence for each that is beyond the tolerance."""
        for name in ("losses", "weights", "predictions", *(("optimizer",) if optimizer else ())):
            value = getattr(self, name)
            if not value <= tolerance:  # and not a number is beyond it too
                self.wrong.append(f"{name} differ by {value:.1e}")
        return self


def of_numbers(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference of numbers in order."""
    if len(found) != len(wanted):
        return float("inf")
    return max((abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, wanted, strict=True)), default=0.0)


def losses_of(outcome: Outcome) -> list[float]:
    """Each micro-batch's loss, of all ranks."""
    return [float(np.mean(each)) for each in zip(*(rank["losses"] for rank in outcome.ranks), strict=True)]


def norms_of(outcome: Outcome) -> list[float]:
    """Each update's gradient norm before clipping."""
    return [norm for norm in outcome.ranks[0]["norms"] if norm is not None]


def compare(scenario: Scenario, found: Outcome, wanted: Outcome, tolerance: float) -> Difference:
    """A run against the one that it must equal; a resumed one against the end of the one that never changed."""
    made = Difference()
    if found.trouble:
        made.wrong.append(found.trouble)
        return made
    if wanted.trouble:
        made.wrong.append(f"what it is compared with failed: {wanted.trouble}")
        return made
    one, first = found.ranks[0], wanted.ranks[0]
    resumed = scenario.resume is not None
    losses, expected = losses_of(found), losses_of(wanted)
    if resumed and scenario.rows is None:
        if not 0 < len(losses) < len(expected):
            made.wrong.append(f"{len(losses)} micro-batches after the resume, of {len(expected)}")
        expected = expected[-len(losses) :]
    if scenario.rows is None:
        made.losses = of_numbers(losses, expected)
    norms, wanted_norms = norms_of(found), norms_of(wanted)
    if norms and wanted_norms:
        made.losses = max(made.losses, of_numbers(norms, wanted_norms[-len(norms) :]))
    elif wanted_norms:
        made.wrong.append("no gradient norm was told, though gradients are clipped")
    made.losses = max(made.losses, _history(made, one["history"], first["history"], tolerance))
    if not resumed:
        made.losses = max(made.losses, of_numbers([one["training_loss"]], [first["training_loss"]]))
    made.losses = max(made.losses, of_numbers([one["bare"]], [first["bare"]]))
    for name, value in first["metrics"].items():
        made.predictions = max(made.predictions, of_numbers([one["metrics"][name]], [value]))
    if one["metrics"].keys() != first["metrics"].keys():
        made.wrong.append("other metrics")

    weights, expected_weights = found.tensors["weights"], wanted.tensors["weights"]
    if list(weights) != list(expected_weights):
        made.wrong.append("other names of weights")
    else:
        made.weights = max(of_tensors(weights[name], expected_weights[name]) for name in weights)
    predictions = found.tensors["predictions"]
    for part, (array, expected_array) in enumerate(
        zip(predictions, wanted.tensors["predictions"], strict=True)
    ):
        if array.shape != expected_array.shape:
            made.wrong.append(f"predictions {part} of shape {tuple(array.shape)}")
        elif part < 2:
            made.predictions = max(made.predictions, of_tensors(array, expected_array))
        elif not torch.equal(array, expected_array):
            made.wrong.append("rows of the prediction in another order")
    if predictions[2].tolist() != list(range(EVALUATED_ROWS)):
        made.wrong.append("not every row predicted once and in order")
    for key in ("weights", "predictions", "bare"):
        if len({rank[key] for rank in found.ranks}) != 1:
            made.wrong.append(f"{key} differ from rank to rank")
    if not all(rank["metrics_saw_the_same"] for rank in found.ranks):
        made.wrong.append("compute_metrics was given another array than predict gave back")
    ours, theirs = last_checkpoint_of(found.folder), last_checkpoint_of(wanted.folder)
    if ours.name != theirs.name:
        made.wrong.append(f"the last checkpoint is {ours.name}, not {theirs.name}")
    else:
        compare_checkpoints(made, ours, theirs)
    # bf16 rounds single gradients by more than their sum: of the moments it says little.
    return made.check(tolerance, optimizer=not scenario.settings.get("bf16"))


def _history(made: Difference, found: list[Any], wanted: list[Any], tolerance: float) -> float:
    """The log: rows, keys and numbers. Losses stand there rounded to four digits."""
    largest = 0.0
    if len(found) != len(wanted):
        made.wrong.append(f"{len(found)} rows of the log, not {len(wanted)}")
        return largest
    for number, (row, expected) in enumerate(zip(found, wanted, strict=True)):
        if row.keys() != expected.keys():
            made.wrong.append(f"row {number} of the log has {', '.join(row)}")
            continue
        for key, value in expected.items():
            if key == "loss":
                if abs(row[key] - value) > max(1.01e-4, tolerance * abs(value)):
                    made.wrong.append(f"row {number} of the log has the loss {row[key]}, not {value}")
            elif key == "total_flos":
                if row[key] != value:
                    made.wrong.append(f"row {number} of the log has {key} {row[key]}, not {value}")
            else:
                largest = max(largest, of_numbers([row[key]], [value]))
    return largest


def last_checkpoint_of(folder: Path) -> Path:
    """By its number."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return found[-1] if found else folder / "no checkpoint"


def compare_checkpoints(made: Difference, found: Path, wanted: Path) -> None:
    """Weights, optimizer by name, groups, gradients, scheduler, and the place in the data."""
    try:
        ours, theirs = (load_checkpoint(str(path), model=build()) for path in (found, wanted))
    except Exception as error:
        made.wrong.append(f"{type(error).__name__}: {error}")
        return
    one, other = ours.train_state, theirs.train_state
    assert one is not None
    assert other is not None
    for what in ("weights", "gradients"):
        here, there = getattr(one, what), getattr(other, what)
        if here.keys() != there.keys():
            made.wrong.append(
                f"the checkpoint has {what} of {sorted(here.keys() ^ there.keys())[:3]} too many or few"
            )
            continue
        for name in there:
            difference = of_tensors(here[name], there[name])
            if what == "gradients":
                made.optimizer = max(made.optimizer, difference)
            else:
                made.weights = max(made.weights, difference)
            if here[name].dtype != there[name].dtype:
                made.wrong.append(f"{what} of {name!r} are {here[name].dtype}")
    if one.optimizer.keys() != other.optimizer.keys():
        odd = sorted(one.optimizer.keys() ^ other.optimizer.keys())
        made.wrong.append(f"the checkpoint has optimizer state of {odd[:3]} too many or few")
    else:
        for name, entry in other.optimizer.items():
            mine = one.optimizer[name]
            if mine.keys() != entry.keys():
                made.wrong.append(
                    f"the optimizer's state of {name!r} has {sorted(mine)}, not {sorted(entry)}"
                )
                continue
            for key, value in entry.items():
                a, b = torch.as_tensor(mine[key]), torch.as_tensor(value)
                made.optimizer = max(made.optimizer, of_tensors(a, b))
    _groups(made, one.groups, other.groups)
    for what in ("scheduler", "position"):
        mine, expected = _numbers(getattr(ours, what)), _numbers(getattr(theirs, what))
        if what == "position":
            mine, expected = _place(mine), _place(expected)
        if (
            mine.keys() != expected.keys()
            or of_numbers(list(mine.values()), [expected[k] for k in mine]) > 1e-9
        ):
            made.wrong.append(f"the checkpoint has another {what}: {_first_odd(mine, expected)}")


def _groups(made: Difference, found: list[Any], wanted: list[Any]) -> None:
    if [group["params"] for group in found] != [group["params"] for group in wanted]:
        made.wrong.append("the optimizer's groups have other parameters, or another order")
        return
    for number, (group, expected) in enumerate(zip(found, wanted, strict=True)):
        if group.keys() != expected.keys():
            made.wrong.append(
                f"group {number} of the optimizer has other options: {sorted(group.keys() ^ expected.keys())}"
            )
            continue
        for key, value in expected.items():
            if key in ("params", "foreach", "fused", "capturable"):
                continue
            mine, theirs = _numbers(group[key]), _numbers(value)
            if mine.keys() != theirs.keys() or of_numbers(list(mine.values()), list(theirs.values())) > 1e-9:
                made.wrong.append(f"{key} of group {number} of the optimizer is {group[key]}, not {value}")


def _numbers(value: Any, prefix: str = "") -> dict[str, float]:
    """Every number of a tree, by its path."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in _numbers(value[key], f"{prefix}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in _numbers(item, f"{prefix}.{i}").items()}
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return {prefix: float(value)}
    if isinstance(value, (bool, int, float)):
        return {prefix: float(value)}
    return {}


def _place(numbers: dict[str, float]) -> dict[str, float]:
    """Of the position what does not depend on how many processes there are."""
    odd = (".data.ranks", ".data.world", ".data.ended", ".layout")
    made = {key: value for key, value in numbers.items() if not key.startswith(odd)}
    for key in (".batch", ".micro_batches"):
        made[key] /= numbers.get(".layout.parts", 1.0)
    if ".layout.world" in numbers:
        made["global batch"] = numbers[".layout.world"] * numbers[".layout.batch_size"]
    return made


def _first_odd(found: dict[str, float], wanted: dict[str, float]) -> str:
    for key in found.keys() | wanted.keys():
        if found.get(key) != wanted.get(key):
            return f"{key.lstrip('.')} is {found.get(key)}, not {wanted.get(key)}"
    return "nothing"
