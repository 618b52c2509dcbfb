"""Checkpoints, and states that were restored from them: whether two hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from drivetrain.checkpoint import load_checkpoint
from drivetrain.errors import DrivetrainError
from drivetrain.testing.comparing import Finding, apart, tensors, weights
from drivetrain.testing.model import build

# Choices of speed, which say nothing of what an update is.
SPEED = ("foreach", "fused", "capturable")


def checkpoints(found: Path, wanted: Path, tolerance: float) -> list[Finding]:
    """Two folders: weights, optimizer and gradients by name, groups, schedule, and the place in the data."""
    try:
        ours, theirs = (load_checkpoint(str(path), model=build()) for path in (found, wanted))
    except (DrivetrainError, OSError) as error:
        return [Finding("checkpoint", f"it cannot be read: {error}")]
    made = states(vars_of(ours.train_state), vars_of(theirs.train_state), tolerance)
    for what in ("scheduler", "position"):
        mine, expected = _numbers(getattr(ours, what)), _numbers(getattr(theirs, what))
        if what == "position":
            mine, expected = _place(mine), _place(expected)
        for key in expected.keys() | mine.keys():
            if not apart(mine.get(key, float("nan")), expected.get(key, float("nan"))) <= 1e-9:
                text = f"{what}: {key.lstrip('.')} is {mine.get(key)}, not {expected.get(key)}"
                made.append(Finding(what, text))
                break
    return made


def against_checkpoint(restored: dict[str, Any], folder: Path) -> list[Finding]:
    """What a strategy gave from `state_out` right after `state_in` set what a checkpoint holds."""
    contents = load_checkpoint(str(folder), model=build())
    return states(restored, vars_of(contents.train_state), 1e-6)


def vars_of(state: Any) -> dict[str, Any]:
    """Parts of a `TrainState`, by name."""
    return {part: getattr(state, part) for part in ("weights", "optimizer", "groups", "gradients")}


def states(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> list[Finding]:
    """Weights, optimizer, gradients and groups, as `vars_of` gives them."""
    made = weights(found.get("weights", {}), wanted["weights"], tolerance)
    made += tensors("gradients", found.get("gradients", {}), wanted["gradients"], tolerance)
    made += tensors("optimizer", _flat(found.get("optimizer", {})), _flat(wanted["optimizer"]), tolerance)
    return made + _groups(found.get("groups", []), wanted["groups"])


def _flat(states: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{key} of {name}": value
        for name, entry in states.items()
        for key, value in entry.items()
        if isinstance(value, (int, float, torch.Tensor))
    }


def _groups(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[Finding]:
    if [group.get("params") for group in found] != [group["params"] for group in wanted]:
        return [Finding("groups", "the optimizer's groups hold other parameters, or in another order")]
    for number, (group, expected) in enumerate(zip(found, wanted, strict=True)):
        mine, theirs = _numbers(_options(group)), _numbers(_options(expected))
        for key, value in theirs.items():
            if not apart(mine.get(key, float("nan")), value) <= 1e-9:
                text = f"{key.lstrip('.')} of the optimizer's group {number} is {mine.get(key)}, not {value}"
                return [Finding("groups", text)]
    return []


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", *SPEED)}


def _numbers(value: Any, prefix: str = "") -> dict[str, float]:
    """Every number of a tree, by its path."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in _numbers(value[key], f"{prefix}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in _numbers(item, f"{prefix}.{i}").items()}
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return {prefix: float(value)}
    return {prefix: float(value)} if isinstance(value, (bool, int, float)) else {}


def _place(numbers: dict[str, float]) -> dict[str, float]:
    """Of the position what does not depend on how many processes there are."""
    odd = (".data.ranks", ".data.world", ".data.ended", ".layout")
    made = {key: value for key, value in numbers.items() if not key.startswith(odd)}
    for key in (".batch", ".micro_batches"):
        made[key] /= numbers.get(".layout.parts", 1.0)
    if ".layout.world" in numbers:
        made["global batch"] = numbers[".layout.world"] * numbers[".layout.batch_size"]
    return made
