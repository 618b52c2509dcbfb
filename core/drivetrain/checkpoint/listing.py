"""What checkpoints a run's folder holds: what each is, whether it is whole, and what killed runs left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from drivetrain.checkpoint import files
from drivetrain.checkpoint.contents import RUN, TRAINER_STATE, TRAINING_ARGS
from drivetrain.checkpoint.manifest import MANIFEST, check, read_manifest, validate
from drivetrain.checkpoint.reader import load_checkpoint
from drivetrain.checkpoint.rotation import NAME, checkpoints
from drivetrain.checkpoint.tensors import read_header, unreadable
from drivetrain.checkpoint.transformers_files import problem_of, written_by_transformers
from drivetrain.errors import CheckpointError

Progress = Callable[[int], object]
"""Told of bytes that have been read."""

OURS, TRANSFORMERS = "drivetrain", "transformers"

_LEFT = {
    "tmp": "half-written: by a run that was killed, or by one that is saving now",
    "old": "was being replaced when a run was killed",
    "del": "was being deleted when a run was killed",
    "hub": "being sent to a hub, by a run that goes on or was killed",
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A checkpoint, as a list shows it.

    Attributes:
        step: of its name.
        path: its folder.
        writer: "drivetrain", or "transformers" where that wrote it.
        size: bytes of all its files.
        written: when, in seconds since 1970.
        problem: why it is not valid; None where it is.
        epoch: how far the run had come.
        metric_name, metric: what was evaluated at this step: the metric of the best model, else the loss.
        best: whether it is the best of its run.
        strategy, world_size: of the run that wrote it.
        resumes: whether `resume_from_checkpoint=True` goes on from it.
        aside: whether a run that was killed while replacing it left it under a hidden name, from which the next run
            puts it back.
    """

    step: int
    path: str
    writer: str
    size: int
    written: float
    problem: str | None = None
    epoch: float | None = None
    metric_name: str | None = None
    metric: float | None = None
    best: bool = False
    strategy: str | None = None
    world_size: int | None = None
    resumes: bool = False
    aside: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """A hidden folder that a killed run left: its path, what it was to be, what it is, and its bytes."""

    path: str
    name: str
    what: str
    size: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The checkpoints of a folder by step, and what else is in it."""

    folder: str
    checkpoints: list[Listed] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)

    @property
    def resumes(self) -> Listed | None:
        """The one that `resume_from_checkpoint=True` goes on from."""
        return next((found for found in self.checkpoints if found.resumes), None)


def list_checkpoints(folder: str, *, verify: bool = False, progress: Progress | None = None) -> Listing:
    """Lists a run's folder. Nothing in it is changed, and nothing is unpickled.

    Args:
        folder: the run's.
        verify: read every byte of each, and not only the sizes.
        progress: told of bytes read, where they are.
    """
    found = [describe(path, step, verify, progress) for step, path in checkpoints(folder)]
    leftovers = []
    for path, name, kind in files.hidden(folder):
        named = NAME.fullmatch(name)
        if named is not None and kind == "old" and not os.path.lexists(os.path.join(folder, name)):
            found.append(replace(describe(path, int(named[1]), verify, progress), aside=True))
        else:
            leftovers.append(Leftover(path, name, _LEFT[kind], files.tree_bytes(path)))
    found.sort(key=lambda entry: entry.step)
    best = _best_of(found)
    last = max((entry.step for entry in found if entry.problem is None), default=None)
    listed = [
        replace(entry, best=f"checkpoint-{entry.step}" == best, resumes=entry.step == last) for entry in found
    ]
    return Listing(folder, listed, leftovers)


def describe(path: str, step: int, verify: bool = False, progress: Progress | None = None) -> Listed:
    """What is to be said of one checkpoint, its place among others left out."""
    writer = writer_of(path)
    problem = what_is_wrong(path, progress) if verify else _quickly_wrong(path)
    state, args, run = (_tree(path, name) for name in (TRAINER_STATE, TRAINING_ARGS, RUN + ".json"))
    name, value = _metric(state, args, step)
    plugins = run.get("plugins")
    chosen = [key for key in plugins if key.startswith("strategy:")] if isinstance(plugins, dict) else []
    world, epoch = run.get("world_size"), state.get("epoch")
    return Listed(
        step=step,
        path=path,
        writer=writer,
        size=files.tree_bytes(path),
        written=_written(path),
        problem=problem,
        epoch=float(epoch) if isinstance(epoch, (int, float)) else None,
        metric_name=name,
        metric=value,
        strategy=chosen[0].partition(":")[2] if chosen else None,
        world_size=world if isinstance(world, int) else None,
    )


def writer_of(path: str) -> str:
    """Who wrote a checkpoint: drivetrain, which seals it by a manifest, or transformers."""
    return TRANSFORMERS if written_by_transformers(path) else OURS


def bytes_of(path: str) -> int:
    """Bytes that reading a checkpoint takes: what its manifest says, or what lies in its folder."""
    try:
        return sum(record.size for record in read_manifest(path).values())
    except (CheckpointError, OSError):
        return files.tree_bytes(path)


def what_is_wrong(path: str, progress: Progress | None = None) -> str | None:
    """Reads every byte of a checkpoint against its manifest, then opens every file of it.

    Returns:
        The first thing that is wrong, or None.
    """
    if writer_of(path) == TRANSFORMERS:
        return problem_of(path)
    try:
        records = read_manifest(path)
        for name, record in records.items():
            reason = check(path, name, record)
            if reason is not None:
                return reason
            if progress is not None:
                progress(record.size)
        for name in records:
            _open(path, name)
        contents = load_checkpoint(path, verify=False)
        for rank in range(1, contents.world_size):
            if f"random-{rank}.json" in records:
                load_checkpoint(path, rank, contents.world_size, verify=False)
    except CheckpointError as error:
        return str(error).rstrip(".")
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return None


def _quickly_wrong(path: str) -> str | None:
    return problem_of(path) if writer_of(path) == TRANSFORMERS else validate(path, quick=True)


def _open(folder: str, name: str) -> None:
    path = os.path.join(folder, *name.split("/"))
    if name.endswith(".safetensors"):
        read_header(path)
    elif name.endswith(".json"):
        try:
            with open(path, encoding="utf-8") as file:
                json.load(file)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(unreadable(path, error)) from error


def _tree(folder: str, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint that may be damaged; empty where it cannot be read."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _metric(state: dict[str, Any], args: dict[str, Any], step: int) -> tuple[str | None, float | None]:
    """The metric of the best model, or the loss, that was evaluated at this very step."""
    wanted = args.get("metric_for_best_model")
    names = [wanted, f"eval_{wanted}"] if isinstance(wanted, str) else []
    rows = state.get("log_history")
    for name in (*names, "eval_loss"):
        for row in reversed(rows if isinstance(rows, list) else []):
            if not isinstance(row, dict) or row.get("step") != step:
                continue
            value = row.get(name)
            if isinstance(value, (int, float)):
                return name.removeprefix("eval_"), float(value)
    return None, None


def _best_of(found: list[Listed]) -> str | None:
    """The name of the best checkpoint, as the last valid one knows it."""
    for entry in reversed(found):
        best = _tree(entry.path, TRAINER_STATE).get("best_model_checkpoint") if not entry.problem else None
        if isinstance(best, str):
            return os.path.basename(os.path.normpath(best))
    return None


def _written(path: str) -> float:
    for name in (MANIFEST, TRAINER_STATE, ""):
        try:
            return os.stat(os.path.join(path, name)).st_mtime
        except OSError:
            continue
    return 0.0
