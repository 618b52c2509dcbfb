"""Which checkpoints there are, which one a run resumes from, and which are deleted."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable

from drivetrain.checkpoint import files
from drivetrain.checkpoint.manifest import validate
from drivetrain.checkpoint.transformers_files import problem_of, written_by_transformers

logger = logging.getLogger("drivetrain")

NAME = re.compile(r"checkpoint-(\d+)", re.ASCII)


def checkpoints(output_dir: str) -> list[tuple[int, str]]:
    """(step, folder) of every folder named `checkpoint-STEP`, valid or not, by step. Links are left out."""
    try:
        names = os.listdir(output_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for name in names:
        match = NAME.fullmatch(name)
        path = os.path.join(output_dir, name)
        if match is not None and os.path.isdir(path) and not os.path.islink(path):
            found.append((int(match[1]), path))
    return sorted(found)


def last_checkpoint(
    output_dir: str, wanted: Callable[[str], bool] | None = None, most: int | None = None
) -> str | None:
    """The valid checkpoint with the highest step, or None. A warning names each that is passed over, and why.

    One that transformers wrote, which has no seal, counts as valid where it can be read.

    A checkpoint that a killed process left between the two renames of a replacement is put back first.

    Args:
        output_dir: where they are.
        wanted: of the valid ones, which count; by default all.
        most: the highest step that counts; those beyond are not looked at.
    """
    files.recover(output_dir)
    for step, folder in reversed(checkpoints(output_dir)):
        if most is not None and step > most:
            continue
        reason = problem_of(folder) if written_by_transformers(folder) else validate(folder)
        if reason is not None:
            logger.warning("%s is passed over: %s.", folder, reason)
        elif wanted is None or wanted(folder):
            return folder
    return None


def rotate(
    output_dir: str,
    limit: int | None,
    *,
    best: str | None = None,
    latest: str | None = None,
    fresh: bool = True,
) -> list[str]:
    """Deletes the oldest checkpoints until `limit` are left, and returns what it deleted.

    What cannot be deleted, or looked at, is a warning: the checkpoint that was just written stands all the same.

    The latest and the best are spared, the best even where `limit` is 1 and it is not the latest: then two
    stay. So is the last valid one. Order is by step; checkpoints beyond `latest`, which a run that resumed
    before them has left behind, are the first to go.

    Args:
        output_dir: where they are.
        limit: `save_total_limit`; None, or below 1, deletes nothing.
        best: the folder of the best checkpoint, if one is known.
        latest: the folder that was written just now; by default the one with the highest step.
        fresh: `latest` was written just now, so that its names and sizes are enough to call it valid. Every
            other checkpoint is read, where it comes to whether it is the last valid one.
    """
    if limit is None or limit <= 0:
        return []
    try:
        found = checkpoints(output_dir)
    except OSError as error:
        logger.warning("%s cannot be read, so that save_total_limit deletes nothing: %s", output_dir, error)
        return []
    if len(found) <= limit:
        return []
    latest_name = os.path.basename(os.path.normpath(latest)) if latest else os.path.basename(found[-1][1])
    best_name = os.path.basename(os.path.normpath(best)) if best else None
    latest_step = next((step for step, path in found if os.path.basename(path) == latest_name), found[-1][0])
    found.sort(key=lambda entry: (entry[0] <= latest_step, entry[0]))
    spared = {name for name in (latest_name, best_name) if name is not None}
    doomed = [path for _, path in found if os.path.basename(path) not in spared]
    kept = len(found) - len(doomed)  # of the spared, those that are there
    doomed = doomed[: max(0, len(doomed) - max(0, limit - kept))]
    survivors = [path for _, path in reversed(found) if path not in doomed]
    known = latest_name if latest is not None and fresh else None
    if not any(validate(path, quick=os.path.basename(path) == known) is None for path in survivors):
        for path in reversed(doomed):
            if validate(path) is None:
                doomed.remove(path)
                break
    deleted = []
    for path in doomed:
        logger.info("Deleting %s: save_total_limit is %d.", path, limit)
        try:
            files.remove_tree(path)
            deleted.append(path)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", path, error)
    return deleted
