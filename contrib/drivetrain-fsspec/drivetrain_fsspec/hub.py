"""A folder or a bucket as a hub."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from drivetrain import HubError, Run, Upload, hookimpl
from drivetrain_fsspec import FsspecOptions

SEAL = "manifest.json"
"""What makes a folder a checkpoint: without it nobody takes the folder for one."""
LASTING = (PermissionError, FileExistsError, FileNotFoundError, NotADirectoryError)
"""Errors that another attempt does not cure."""


class Fsspec:
    """The plugin: answers `make_hub`, and is the hub as well."""

    def __init__(self, options: FsspecOptions) -> None:
        self.options = options

    @hookimpl
    def make_hub(self, run: Run) -> Fsspec:
        """The hub."""
        return self

    def create(self, run: Run) -> str:
        """Makes the folder, and writes and deletes a file in it: what cannot work is known before the run."""
        address = str(run.args.hub_model_id).rstrip("/")
        with self._reached(address) as (system, root):
            system.makedirs(root, exist_ok=True)
            system.pipe_file(f"{root}/.drivetrain", b"")
            system.rm_file(f"{root}/.drivetrain")
        return address

    def upload(self, upload: Upload) -> str:
        """Writes the files in a transaction: they appear when all of them are written, the seals last."""
        with self._reached(upload.repository) as (system, root):
            there = {path.removeprefix(f"{root}/") for path in system.find(root)}
            gone = {
                path
                for path in there - set(upload.files)
                if any(fnmatch.fnmatchcase(path, pattern) for pattern in upload.replaces)
            }
            with system.transaction:
                for path, file in sorted(upload.files.items(), key=lambda item: item[0].endswith(SEAL)):
                    system.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
                    with open(file, "rb") as source, system.open(f"{root}/{path}", "wb") as target:
                        shutil.copyfileobj(source, target, self.options.block_size)
                for path in there & set(upload.files):
                    if path.endswith(SEAL):
                        system.rm_file(
                            f"{root}/{path}"
                        )  # from here on it is no checkpoint, until its seal is there
            for path in gone:
                system.rm_file(f"{root}/{path}")
        return upload.repository

    @contextmanager
    def _reached(self, address: str) -> Iterator[tuple[Any, str]]:
        """The file system of an address, and the path in it. What it raises is said in a sentence."""
        try:
            yield fsspec.url_to_fs(address, **self.options.storage_options)
        except Exception as error:  # each file system has its own
            raise HubError(
                f"{address} cannot be written to ({type(error).__name__}: {error})",
                temporary=not isinstance(error, LASTING),
            ) from error

    def write_card(self, run: Run, folder: str, **fields: Any) -> str:
        """A short card. By the tag in its head it is known as a draft, and written anew."""
        name = fields.get("model_name") or str(run.args.hub_model_id or folder).rstrip("/").rpartition("/")[2]
        last = [row for row in run.state.log_history if any(key.startswith("eval_") for key in row)][-1:]
        lines = ["---", "tags:", "- generated_from_trainer", "---", "", f"# {name}", ""]
        lines += [f"{run.state.global_step} updates, {run.state.epoch or 0:.2f} epochs.", ""]
        lines += [f"- {key} = {value}" for row in last for key, value in row.items()]
        lines += [f"- {key}: {value}" for key, value in fields.items() if value is not None]
        path = Path(folder, "README.md")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)
