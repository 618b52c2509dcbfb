"""What is left of a killed run, and whether the one that went on from it ended as the one that was never killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.checkpoint import checkpoints, validate
from durability.forks import Place

# A kill fell where these words say, in the order of the tables.
PLACES = ("start", "training", "evaluation", "save", "replacement", "rotation", "end")
_CLOCK = ("runtime", "per_second")


@dataclass(frozen=True)
class Whole:
    """A run that was never killed.

    Attributes:
        outcome: what it ended with.
        files: of each of its checkpoints and each file in it, a digest.
    """

    outcome: dict[str, Any]
    files: dict[str, dict[str, str]]

    @classmethod
    def of(cls, place: Place) -> Whole:
        return cls(place.outcome(), digests(place.out))


def digests(out: str) -> dict[str, dict[str, str]]:
    """Of each entry of an output folder the digests of its files. What the clock says is left out."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(os.listdir(out)):
        found[name] = {}
        for path in sorted(Path(out, name).rglob("*")):
            # The manifest has the sizes of files that hold times, and the arguments are what the run was told.
            if path.name not in ("manifest.json", "training_args.json"):
                found[name][str(path.relative_to(Path(out, name)))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    raw = path.read_bytes()
    if path.name == "trainer_state.json":
        state = json.loads(raw)
        state["log_history"] = [
            {key: value for key, value in row.items() if not any(word in key for word in _CLOCK)}
            for row in state["log_history"]
        ]
        raw = json.dumps(state, sort_keys=True).encode()
    if path.name == "run.json":
        found = json.loads(raw)
        found.pop("configuration")  # names the launch
        raw = json.dumps(found, sort_keys=True).encode()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def fell(place: Place, since: int = 0) -> str:
    """Where a kill fell: by what lies in the output folder, else by what the run noted last.

    Args:
        place: of the run.
        since: notes of earlier runs in this place.
    """
    hidden = {
        match[1]
        for name in _listed(place.out)
        if (match := re.fullmatch(r"\..+\.(tmp|old|del)-[0-9a-f]+", name))
    }
    notes = place.noted()[since:]
    if not notes:
        return "start"  # whatever lies there may be of the run before
    if "old" in hidden:
        return "replacement"
    if hidden:
        return "save" if "tmp" in hidden else "rotation"
    last = notes[-1][0]
    return {"evaluate": "evaluation", "best": "end", "end": "end"}.get(last, "training")


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def what_is_left(place: Place) -> tuple[int, list[str]]:
    """After a kill: the step of the last whole checkpoint (0 for none), and what is wrong."""
    wrong = []
    whole = [0]
    for step, folder in checkpoints(place.out) if os.path.isdir(place.out) else []:
        reason = validate(folder)
        if reason is None:
            whole.append(step)
        else:
            wrong.append(f"half of {os.path.basename(folder)} is left: {reason}")
    aside = [
        int(match[1]) for name in _listed(place.out) if (match := re.match(r"\.checkpoint-(\d+)\.old-", name))
    ]
    notes = place.noted()
    told = max((step for word, step in notes if word == "saved"), default=0)
    ended = any(word in ("best", "end") for word, _ in notes)  # then the best may be the only one that stays
    if told > max(whole + aside) and not ended:
        wrong.append(f"the run told of checkpoint-{told}, and the last one left is that of step {max(whole)}")
    return max(whole + aside), wrong


def differences(place: Place, whole: Whole, listing: bool = True) -> list[str]:
    """In what the run of a place differs from the one that was never killed.

    Args:
        place: of the run.
        whole: the other.
        listing: also in which checkpoints stay.
    """
    wrong = _compared("", whole.outcome, place.outcome())
    found = digests(place.out)
    for name in sorted(whole.files.keys() ^ found.keys()) if listing else ():
        wrong.append(f"{name} is {'missing' if name in whole.files else 'too many'}")
    for name in whole.files.keys() & found.keys():
        files, others = whole.files[name], found[name]
        wrong += [
            f"{name}/{path}" for path in files.keys() | others.keys() if files.get(path) != others.get(path)
        ]
    return wrong


def _compared(where: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in one.keys() | other.keys()
            for line in _compared(f"{where}/{key}", one.get(key), other.get(key))
        ]
    return [] if one == other else [f"{where[1:]}: {str(one)[:80]} became {str(other)[:80]}"]
