"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from drivetrain.checkpoint.manifest import sync_folder
from drivetrain.errors import CheckpointError

logger = logging.getLogger("drivetrain")

_FULL = {errno.ENOSPC, errno.EDQUOT}
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old|del)-[0-9a-f]{8}")


def beside(folder: str, kind: str) -> str:
    """A new hidden name in the same place: `.NAME.tmp-XXXX` (being written), `.old-` (being replaced) or
    `.del-` (being deleted)."""
    parent, name = os.path.split(os.path.abspath(folder))
    return os.path.join(parent, f".{name}.{kind}-{secrets.token_hex(4)}")


def leftovers(folder: str, kind: str) -> list[str]:
    """The hidden folders of this kind that stand beside `folder` and were meant for it."""
    parent, name = os.path.split(os.path.abspath(folder))
    return [path for path, of, found in hidden(parent) if of == name and found == kind]


def replace_tree(new: str, folder: str) -> None:
    """Puts a finished folder in its place by a rename, in place of the one that stands there, if any.

    At every moment the old or the new one is there whole: under its own name, or, between two renames,
    beside it under a hidden name from which `recover` takes it back.

    Args:
        new: a folder on the same file system, synced.
        folder: its place.
    """
    old = None
    if os.path.lexists(folder):
        old = beside(folder, "old")
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old is not None:
            os.rename(old, folder)
        raise
    sync_folder(os.path.dirname(os.path.abspath(folder)))
    if old is not None:
        _discard(old)


def remove_tree(folder: str) -> None:
    """Deletes a folder so that no half of it can be taken for a whole: it is renamed first."""
    doomed = beside(folder, "del")
    os.rename(folder, doomed)
    _discard(doomed)


def recover(parent: str) -> None:
    """Puts back what a process that died between the two renames of `replace_tree` left aside."""
    for path, name, kind in hidden(parent):
        place = os.path.join(parent, name)
        if kind == "old" and not os.path.lexists(place):
            try:
                os.rename(path, place)
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:
                logger.warning("%s, left by a killed run, could not be renamed to %s: %s", path, place, error)


def sweep(parent: str) -> None:
    """Removes what killed runs left in a folder: half-written, replaced and half-deleted checkpoints.

    Call it when no save is under way, at the beginning of a run, from one process.
    """
    recover(parent)
    for path, _, _ in list(hidden(parent)):
        logger.info("Removing %s, left by a run that was killed.", path)
        _discard(path)


@contextmanager
def one_sentence(folder: str, needed: int, temporary: str) -> Iterator[None]:
    """On an error of the file system, removes the temporary folder and says what was wrong in one sentence.

    Args:
        folder: the place of the checkpoint, for the message.
        needed: bytes that it takes, as far as they can be told before.
        temporary: the folder to remove on any error.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise CheckpointError(failure(folder, needed, error)) from error
        raise


def failure(folder: str, needed: int, error: BaseException) -> str:
    """Why a checkpoint could not be written, and what helps."""
    name = os.path.basename(folder)
    parent = os.path.dirname(os.path.abspath(folder))
    number = getattr(error, "errno", None)
    text = str(error)
    if number in _FULL or "os error 28" in text or "No space left" in text:
        try:
            missing = needed - shutil.disk_usage(parent).free
        except OSError:
            missing = 0
        how_much = ""
        if needed > 0:
            how_much = (
                f": {size(missing)} more are needed" if missing > 0 else f": it takes about {size(needed)}"
            )
        return (
            f"Checkpoint {name} was not written, because the disk of {parent} is full{how_much}; "
            "free some space there, or lower save_total_limit."
        )
    if number == errno.EFBIG:
        return (
            f"Checkpoint {name} was not written, because the system limits the size of files in {parent}; "
            "lower max_shard_size, or raise the limit (ulimit -f)."
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"Checkpoint {name} was not written, because {parent} cannot be written to; "
            "choose another output_dir."
        )
    return f"Checkpoint {name} was not written: {text}"


def size(count: int) -> str:
    """Bytes in words: `"1.2 GB"`."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def hidden(parent: str) -> list[tuple[str, str, str]]:
    """(path, name, kind) of the folders in `parent` that saves left under hidden names, whosever they are."""
    try:
        names = sorted(os.listdir(parent))
    except FileNotFoundError:
        return []
    found = []
    for entry in names:
        match = _LEFTOVER.fullmatch(entry)
        path = os.path.join(parent, entry)
        if match is not None and os.path.isdir(path) and not os.path.islink(path):
            found.append((path, match["name"], match["kind"]))
    return found


def _discard(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", folder, error)
