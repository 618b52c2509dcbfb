"""Files that stay as they are while they are sent, whatever becomes of where they came from."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from drivetrain.checkpoint import files
from drivetrain.checkpoint.export import TRAINING_STATE
from drivetrain.checkpoint.manifest import MANIFEST, FileRecord, check, read_manifest
from drivetrain.checkpoint.transformers_files import problem_of, written_by_transformers
from drivetrain.errors import CheckpointError, HubError
from drivetrain.record import NAME as RECORD

CARD = "README.md"
WEIGHTS = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)
"""Weights in the root of a repository: those of an earlier model must not stay beside those of a later one."""

# What is in an output folder and no part of the model: checkpoints, what hides, and the run's record, which tells of
# folders and machines.
_NOT_THE_MODEL = ("_*", ".*", "*/.*", "checkpoint-*", RECORD)


def is_model(name: str) -> bool:
    """Whether a file of a checkpoint belongs to the model, and not to the training of it."""
    return TRAINING_STATE.fullmatch(name) is None


@dataclass(slots=True)
class Parcel:
    """Files to be sent.

    Attributes:
        files: path in the parcel, with forward slashes -> file on this machine.
        size: bytes of them.
        folder: where links or copies of them lie; None where they are the originals.
        sealed: what the manifest of their checkpoint says of them.
    """

    files: dict[str, str]
    size: int
    folder: str | None = None
    sealed: Mapping[str, FileRecord] = field(default_factory=dict)

    def check(self) -> None:
        """Reads the files against the seal of their checkpoint.

        Raises:
            HubError: they have changed, or are gone.
        """
        for name, record in self.sealed.items():
            assert self.folder is not None
            reason = check(self.folder, name, record)
            if reason is not None:
                raise HubError(f"it is not sent, since {reason}")

    def add(self, path: str, name: str = CARD) -> None:
        """One more file, which no seal covers."""
        self.files[name] = path
        self.size += os.path.getsize(path)

    def close(self) -> None:
        """Removes the links or copies."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def of_checkpoint(checkpoint: str, wanted: Callable[[str], bool] = lambda name: True) -> Parcel:
    """The files of a whole checkpoint, or some of them, as hard links beside it.

    A file of a checkpoint is never written again: it is deleted, or a new one takes its name. So a link to it is as
    good as a copy and costs neither time nor room. Where the file system has no such links, files are copied.

    Raises:
        CheckpointError: it is not whole.
        OSError: there is no room for the copies, or the checkpoint is gone.
    """
    try:
        sealed: dict[str, FileRecord] = read_manifest(checkpoint)
        names = [*sealed, MANIFEST]
    except CheckpointError as error:
        if not written_by_transformers(checkpoint) or problem_of(checkpoint) is not None:
            raise CheckpointError(f"{checkpoint} is not a valid checkpoint: {error}.") from error
        sealed, names = {}, list(_names(checkpoint))
    names = [name for name in names if wanted(name)]
    folder = files.beside(checkpoint, "hub")
    os.mkdir(folder)
    parcel = Parcel({}, 0, folder, {name: sealed[name] for name in names if name in sealed})
    try:
        for name in names:
            parts = name.split("/")
            target = os.path.join(folder, *parts)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _link(os.path.join(checkpoint, *parts), target)
            parcel.add(target, name)
    except BaseException:
        parcel.close()
        raise
    return parcel


def of_output(folder: str, copied: bool) -> Parcel:
    """What is in an output folder, checkpoints left out.

    Args:
        folder: the output folder.
        copied: copy the files, since somebody may write them anew before they are sent.

    Raises:
        OSError: they cannot be read, or there is no room for the copies.
    """
    parcel = Parcel({}, 0, files.beside(os.path.join(folder, "model"), "hub") if copied else None)
    try:
        for name in sorted(_names(folder)):
            if any(fnmatch.fnmatchcase(part, pattern) for pattern in _NOT_THE_MODEL for part in _ways(name)):
                continue
            path = os.path.join(folder, *name.split("/"))
            if parcel.folder is not None:
                target = os.path.join(parcel.folder, *name.split("/"))
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copyfile(path, target)
                path = target
            parcel.add(path, name)
    except BaseException:
        parcel.close()
        raise
    return parcel


def _ways(name: str) -> tuple[str, str]:
    """A path by its whole name, and by that of the folder at its root."""
    return name, name.partition("/")[0]


def _names(folder: str) -> Iterator[str]:
    """The plain files in a folder and below it, hidden ones left out; links are not followed."""
    for inside, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(inside, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield os.path.relpath(path, folder).replace(os.sep, "/")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError):  # no such links here, or too many of them
        shutil.copyfile(source, target, follow_symlinks=False)


def as_upload_files(parcel: Parcel, path: str) -> dict[str, str]:
    """The files by their path in the repository, in a folder of it or in its root."""
    return {f"{path}/{name}" if path else name: file for name, file in parcel.files.items()}
