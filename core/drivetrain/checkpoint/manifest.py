"""The seal of a checkpoint: size and checksum of every file. What has no valid manifest is no checkpoint.

The checksum is XXH3 with 128 bits. It guards against what happens to files: cut short, overwritten, bits
turned. It does not guard against somebody who means harm, and no checksum stored beside the files could,
since they would write the manifest anew; what keeps such a checkpoint harmless is that nothing in it is
executed and no path in it leaves its folder. So a cryptographic hash would buy nothing, and BLAKE2b, the
fast one of the standard library, runs at 0.8 GB/s where XXH3 runs at 10: it would be slower than the disk.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from drivetrain.errors import CheckpointError

MANIFEST = "manifest.json"
ALGORITHM = "xxh3_128"
FORMAT = 1
Digest = xxhash.xxh3_128
_BLOCK = 4 << 20
_MAX_MANIFEST = 64 << 20  # bytes; a manifest of a million files is smaller


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest knows of a file.

    Attributes:
        size: bytes.
        digest: hexadecimal XXH3-128 of its content.
    """

    size: int
    digest: str


def seal(folder: str, known: Mapping[str, FileRecord] | None = None) -> None:
    """Writes the manifest of a folder, and syncs every file and folder in it to the disk.

    Args:
        folder: a checkpoint that is otherwise complete.
        known: records of files that were hashed when they were written, by name relative to `folder`; the
            others are read.

    Raises:
        CheckpointError: there is a link, a device, or a name in it that no reader would take.
        OSError: the file system refused.
    """
    known = known or {}
    files: dict[str, dict[str, Any]] = {}
    folders: list[str] = [folder]
    for path in _walk(folder, folders):
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        if not is_safe_name(name):
            raise CheckpointError(
                f"The file {name!r} cannot be part of a checkpoint, since not every system can have such a name; "
                "choose another."
            )
        descriptor = os.open(path, os.O_RDONLY)
        try:
            record = known.get(name)
            size = os.fstat(descriptor).st_size
            if record is None or record.size != size:
                record = FileRecord(size, _hash(descriptor))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        files[name] = {"size": record.size, ALGORITHM: record.digest}
    text = json.dumps({"format": FORMAT, "files": files, "seal": _seal_of(files)}, indent=1) + "\n"
    path = os.path.join(folder, MANIFEST)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for path in reversed(folders):
        sync_folder(path)


def validate(folder: str, *, quick: bool = False) -> str | None:
    """Why a folder is not a whole checkpoint, or None where it is.

    Args:
        folder: the checkpoint.
        quick: look at names and sizes alone, and do not read the files.
    """
    try:
        records = read_manifest(folder)
        for name, record in records.items():
            reason = check(folder, name, record, quick=quick)
            if reason is not None:
                return reason
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return None


def check(folder: str, name: str, record: FileRecord, *, quick: bool = False) -> str | None:
    """Why a file of a checkpoint is not the one that was sealed, or None where it is."""
    path = folder
    for part in name.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            return f"its {name} is a link"
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return f"its {name} is missing"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return f"its {name} is not a file"
        if status.st_size != record.size:
            return f"its {name} has {status.st_size:,} bytes of {record.size:,}"
        if not quick and _hash(descriptor) != record.digest:
            return f"its {name} has changed since it was written"
    finally:
        os.close(descriptor)
    return None


def read_manifest(folder: str) -> dict[str, FileRecord]:
    """The files of a checkpoint by name, which are safe to join to its folder.

    Raises:
        CheckpointError: there is no manifest, or it is not whole. The message completes a sentence.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        status = os.lstat(path)
    except OSError:
        raise CheckpointError(
            f"it has no {MANIFEST}, so it was never finished or something else wrote it"
        ) from None
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MANIFEST:
        raise CheckpointError(f"its {MANIFEST} is not a plain file of a plausible size")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        files, version, sealed = content["files"], content["format"], content["seal"]
        records = {
            name: FileRecord(int(entry["size"]), str(entry[ALGORITHM])) for name, entry in files.items()
        }
        whole = all(type(entry["size"]) is int for entry in files.values())
    except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"its {MANIFEST} is damaged") from None
    if version != FORMAT:
        raise CheckpointError(
            f"its format {str(version)[:20]!r} is not {FORMAT}, the one that this version reads"
        )
    if sealed != _seal_of(files) or not whole:
        raise CheckpointError(f"its {MANIFEST} is damaged")
    for name in records:
        if not is_safe_name(name):
            raise CheckpointError(f"its {MANIFEST} names {name[:200]!r}, which does not lie in its folder")
    return records


def is_safe_name(name: str) -> bool:
    """Whether a relative name with "/" between its parts stays inside the folder that it is joined to.

    Nor is a name safe that a message cannot show as it is.
    """
    if "\\" in name or ":" in name or not name.isprintable():
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def sync_file(path: str) -> None:
    """Writes a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str) -> None:
    """Writes a folder's entries to the disk, where the system can."""
    if os.name != "nt":
        sync_file(path)


def _walk(folder: str, folders: list[str]) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
            yield from _walk(entry.path, folders)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path
        else:
            raise CheckpointError(f"{entry.path} is a link or a device, which a checkpoint cannot hold.")


def _hash(descriptor: int) -> str:
    digest = Digest()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _seal_of(files: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True, separators=(",", ":")).encode())
