"""The command line that goes on with a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from drivetrain.cli.overrides import FALSE, TRUE

COMMAND = "DRIVETRAIN_COMMAND"
"""Where `--nproc` tells its processes by which command they go on."""

LEFT = "DRIVETRAIN_LEFT"
"""Where it tells them the folder in which each notes that it was told to leave, and left a checkpoint."""


def again(words: Sequence[str], options: Sequence[str] = ()) -> str:
    """The command by which a run goes on: it is not written over, and begins at its last checkpoint.

    Args:
        words: of the command line that began it.
        options: those of them that start several processes.
    """
    kept: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name = word.partition("=")[0].replace("_", "-")
        if name == "--resume-from-checkpoint":
            takes = "=" not in word and queue and not queue[0].startswith("--")
        elif name in ("--overwrite-output-dir", "--no-overwrite-output-dir"):
            takes = "=" not in word and queue and queue[0].lower() in (*TRUE, *FALSE)
        else:
            kept.append(word)
            continue
        if takes:
            queue.pop(0)
    return shlex.join(["drivetrain", *kept, *options, "--resume-from-checkpoint"])
