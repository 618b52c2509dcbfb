"""Which ranks write, each into a folder of its own, where every node keeps the checkpoints (`save_on_each_node`)."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from drivetrain.checkpoint import alike
from drivetrain.checkpoint.files import make_folder
from drivetrain.errors import ConfigurationError
from drivetrain.gathering import exchange_of

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


def find_writers(run: Run, tell: bool) -> tuple[int, ...]:
    """The ranks that write: rank 0, and under `save_on_each_node` the first of each node that has its own folder.

    Of nodes that share one folder the first alone writes. A collective, where that was asked for and there are several
    nodes.

    Args:
        run: its processes stand.
        tell: say where nodes share a folder.

    Raises:
        ConfigurationError: the output folder cannot be made, or written to; on other ranks a ProcessError.
    """
    processes = run.processes
    if not run.args.save_on_each_node or processes.world_size in (1, processes.local_world_size):
        return (0,)
    seen = _who_sees_whom(run)
    homes = {rank: min(sees) for rank, sees in seen.items()}
    writers = tuple(sorted(set(homes.values())))
    if tell and run.is_main_process:
        if len(homes) == 1:
            logger.warning(
                "save_on_each_node=True has no effect: the launcher does not say which processes are on one machine."
            )
        for writer in writers:
            sharing = [str(rank) for rank, home in homes.items() if home == writer]
            if len(sharing) > 1:
                logger.warning(
                    "save_on_each_node=True: output_dir=%r is one folder for the nodes of ranks %s, so rank %d alone "
                    "writes there.",
                    run.args.output_dir,
                    f"{', '.join(sharing[:-1])} and {sharing[-1]}",
                    writer,
                )
    return writers


def _who_sees_whom(run: Run) -> dict[int, list[int]]:
    """The first ranks of the nodes, and whose file each of them finds in its output folder."""
    processes, folder = run.processes, run.args.output_dir
    exchange = exchange_of(processes)
    # A name that nobody has asked for before: a file system on a network may remember that a file is not there.
    first = 0 in (processes.rank, processes.local_rank)
    mark = f".drivetrain-node-{secrets.token_hex(8)}" if first else None
    try:
        with alike(exchange, mark) as marks:
            if mark is not None:
                _make(folder, mark)
        there = [
            rank
            for rank, name in enumerate(marks)
            if name is not None and os.path.exists(os.path.join(folder, name))
        ]
        with alike(exchange, there) as seen:
            pass  # and nobody removes a file before all have looked
    finally:
        if mark is not None:
            with suppress(OSError):
                os.unlink(os.path.join(folder, mark))
    return {rank: [rank, *seen[rank]] for rank, name in enumerate(marks) if name is not None}


def _make(folder: str, mark: str) -> None:
    try:
        make_folder(folder)
        with open(os.path.join(folder, mark), "x", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"output_dir={folder!r} cannot be written to ({error.strerror}): choose another one."
        ) from error
