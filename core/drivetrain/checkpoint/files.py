"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from drivetrain.checkpoint.manifest import sync_folder
from drivetrain.errors import CheckpointError

logger = logging.getLogger("drivetrain")

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old|del|hub)-[0-9a-f]{8}")


def beside(folder: str, kind: str) -> str:
    """A new hidden name in the same place: `.NAME.tmp-XXXX` (being written), `.old-` (being replaced), `.del-` (being
    deleted) or `.hub-` (being sent to a hub)."""
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
        sync_folder(os.path.dirname(os.path.abspath(folder)))
    except OSError:
        # What may not outlive a loss of power is not there, even if it looks so.
        for name, place in ((folder, new), (old, folder)):
            if name is not None and os.path.lexists(name) and not os.path.lexists(place):
                _rename(name, place)
        raise
    if old is not None:
        _discard(old)


def make_folder(path: str) -> None:
    """Makes a folder and those above it, where they are not there, so that they outlive a loss of power."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent)
    os.makedirs(path, exist_ok=True)
    sync_folder(parent)


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
            _rename(path, place)


def sweep(parent: str) -> None:
    """Removes what killed runs left in a folder: half-written, replaced, half-deleted and half-sent checkpoints.

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
        needed = max(needed, tree_bytes(temporary))
        if os.path.lexists(temporary):
            _discard(temporary)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise CheckpointError(failure(folder, needed, error)) from error
        raise


def failure(folder: str, needed: int, error: BaseException, there: int = 0) -> str:
    """Why a checkpoint could not be written, and what helps. Call it when the part that was written is gone.

    Args:
        folder: the place of the checkpoint.
        needed: bytes that it takes, as far as they can be told.
        error: what the system said.
        there: bytes of it that are still there, and will be gone.
    """
    parent = os.path.dirname(os.path.abspath(folder))
    number = getattr(error, "errno", None)
    text = str(error)
    begin = f"Checkpoint {os.path.basename(folder)} was not written"
    if number == errno.ENOSPC or "os error 28" in text or "No space left" in text:
        return (
            f"{begin}, because the disk of {parent} is full{_missing(parent, needed, there) if needed else ''}; "
            "free some space there, or lower save_total_limit."
        )
    if number == errno.EDQUOT:
        return (
            f"{begin}, because the quota for {parent} is used up; it takes about {size(needed)}: "
            "free some space there, or lower save_total_limit."
        )
    if number == errno.EFBIG:
        return (
            f"{begin}, because the system limits the size of files in {parent}; "
            "lower max_shard_size, or raise the limit (ulimit -f)."
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{begin}, because {parent} cannot be written to; choose another output_dir."
    if number == errno.EIO:
        return (
            f"{begin}, because the disk of {parent} reports an error (EIO); "
            "look into the system's log, or choose another output_dir."
        )
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        text = f"{error.strerror}{where}"
    return f"{begin}: {' '.join(text.split())}"


def _missing(parent: str, needed: int, there: int) -> str:
    """How much more must be free than is, as the end of a sentence."""
    try:
        free = shutil.disk_usage(parent).free + there
    except OSError:
        return ""
    more = f"{size(needed - free)} more are needed" if needed > free else f"{size(free)} are free by now"
    return f": it takes about {size(needed)}, and {more}"


def tree_bytes(folder: str) -> int:
    """Bytes of the files in a folder and below it; links are not followed."""
    total = 0
    with suppress(OSError):  # what is gone meanwhile takes nothing
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                total += tree_bytes(entry.path)
            else:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


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


def _rename(path: str, place: str) -> None:
    """Puts a folder back in its place; a failure is a warning, since the next start tries again."""
    try:
        os.rename(path, place)
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        logger.warning("%s could not be renamed to %s: %s", path, place, error)


def _discard(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # what comes after the file that could not be deleted
        if os.path.lexists(folder):
            logger.warning("%s could not be deleted: %s", folder, error)
