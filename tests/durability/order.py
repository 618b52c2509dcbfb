"""Whether the order of a save's calls outlives a loss of power, which keeps only what was synced."""

from __future__ import annotations

import os
from collections.abc import Iterable

from durability.faults import Call


def unsafe(calls: Iterable[Call]) -> list[str]:
    """What a loss of power could take from a checkpoint that has its name, or has been told of.

    Before the rename that gives a checkpoint its name every file and folder in it must be synced, after its last
    change; and before anything older is deleted, before the next save, and at the end, the folders above it, as far as
    they are new or have a new entry. The list of calls is that of a whole run.
    """
    wrong: list[str] = []
    unsynced: dict[str, Call] = {}  # files written to, and folders with a new entry
    for call in calls:
        parent, name = os.path.split(call.second or call.path)
        hidden = name.startswith(".")  # what has such a name may be lost
        if call.name == "fsync":
            unsynced.pop(call.path, None)
        elif call.name in ("write", "truncate"):
            unsynced[call.path] = call
        elif deletes(call):
            wrong += [f"{path} is not synced when {call.path} is deleted" for path in unsynced]
        elif call.name == "rename" and not hidden:
            inside = call.path + os.sep
            wrong += [
                f"{path} is not synced when it gets the name {name}"
                for path in unsynced
                if path == call.path or path.startswith(inside)
            ]
            unsynced[parent] = call
        elif call.name == "mkdir" and hidden:
            wrong += [f"{path} is not synced when the next save begins" for path in unsynced]
        elif call.name in ("create", "mkdir", "link"):
            unsynced[parent] = call
    return wrong + [f"{path} is never synced" for path in unsynced]


def deletes(call: Call) -> bool:
    """Whether the call takes away something that was whole: a checkpoint, or the one that was replaced."""
    names = call.path.split(os.sep) + call.second.split(os.sep)
    return call.name in ("rename", "unlink", "rmdir") and any(
        ".del-" in name or (".old-" in name and call.name != "rename") for name in names
    )
