"""The calls that a process makes on files: counted, listed, and one of them killed at or made to fail.

The calls are those of the C library, caught by a shim (faults.c) that the system's compiler builds here and that
is loaded before the library.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
_HEAD = struct.Struct("<4096s6q")  # as `struct control` of faults.c
_SIZE = 1 << 20

# What happens at the numbered call. A torn write has written half of its bytes.
MODES = ("record", "before", "after", "torn", "fail")


@dataclass(frozen=True)
class Call:
    """One call below the watched folder.

    Attributes:
        number: from 1.
        name: "create" (opened so that it can be written), "open", "write", "fsync", "close", "rename", "mkdir",
            "unlink", "rmdir", "truncate" or "link".
        path: absolute; of a rename the old one.
        second: of a rename the new one.
        bytes: of a write.
    """

    number: int
    name: str
    path: str
    second: str
    bytes: int


class Control:
    """The file by which a process is watched, and told at which call to die.

    Args:
        path: of the file; made anew.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "wb") as file:
            file.truncate(_HEAD.size + _SIZE)
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def arm(self, folder: str, mode: str = "record", number: int = 0, error: int = 0) -> None:
        """Begins a count.

        Args:
            folder: calls on it and below it count.
            mode: what happens at the call `number`.
            number: from 1; 0 for none.
            error: the errno of a call that fails.
        """
        name = os.path.realpath(folder).encode()
        _HEAD.pack_into(self._map, 0, name, MODES.index(mode), number, error, 0, 0, _SIZE)

    @property
    def count(self) -> int:
        return int(_HEAD.unpack_from(self._map)[4])

    def calls(self) -> list[Call]:
        used = int(_HEAD.unpack_from(self._map)[5])
        assert used <= _SIZE, "the list of calls is longer than the file has room for"
        text = self._map[_HEAD.size : _HEAD.size + used].decode()
        found = []
        for line in text.replace("\0", "").splitlines():
            parts = line.split("\t")
            # Others are of a thread that was killed, by another's call, before it had written its line.
            if len(parts) == 5:
                number, name, path, second, count = parts
                found.append(Call(int(number), name, path, second, int(count)))
        return sorted(found, key=lambda call: call.number)

    def attach(self) -> None:
        """In a process that was started with the shim: watch me."""
        ctypes.CDLL(None).faults_attach(self.path.encode())


def lacking() -> str | None:
    """Why there can be no shim here, or None."""
    if sys.platform != "linux":
        return "the shim is for Linux"
    return None if shutil.which("cc") else "no C compiler (cc) is here to build the shim with"


def build(folder: str) -> str:
    """Compiles the shim into a folder; its path."""
    path = os.path.join(folder, "faults.so")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, str(SOURCE), "-ldl"],
        check=True,
    )
    return path
