"""The checkpoint that all ranks go on from: each reads it in its own node's folder, where it must be the same one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint import alike, last_checkpoint, read_run, written_by_transformers
from drivetrain.checkpoint.manifest import read_manifest
from drivetrain.errors import CheckpointError
from drivetrain.gathering import broadcast, exchange_of, gather_objects
from drivetrain.saving import PREFIX, step_of

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


def last_in_common(run: Run, folder: str, wanted: Callable[[str], bool] | None = None) -> str | None:
    """The checkpoint with the highest step that is valid in the folder of every rank that writes. A collective.

    A warning names each that is passed over.

    Args:
        run: its `writers` are known.
        folder: where the checkpoints are.
        wanted: of the valid ones, which count; by default all.

    Raises:
        CheckpointError: some nodes have checkpoints, and all have none in common; or a rank does not see it.
    """
    exchange = exchange_of(run.processes)
    mine: str | None = None
    with alike(exchange):
        if run.keeps_state:
            mine = last_checkpoint(folder, wanted)
    if len(run.writers) == 1:  # looking at every file once is enough, and all ranks must find the same
        found: str | None = broadcast(mine, run.processes)
        if found is not None:
            check_seen(run, found)
            check_same(run, found)
        return found
    before: list[int | None] | None = None
    while True:
        told = gather_objects(step_of(mine) if mine is not None else None, run.processes)
        steps: list[int | None] = [told[rank] for rank in run.writers]
        before = before or steps
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            if any(step is not None for step in before):
                raise _none_in_common(run, before)
            return None
        most = min(known)
        if len(set(steps)) == 1:
            if _are_one(run, mine, run.writers):
                found = os.path.join(folder, f"{PREFIX}-{most}")
                check_seen(run, found)
                return found
            most -= 1
        with alike(exchange):
            if mine is not None and step_of(mine) > most:
                logger.warning("%s is passed over: not every node has it.", mine)
                mine = last_checkpoint(folder, wanted, most)


def named(run: Run, path: str, check: Callable[[str], str]) -> str:
    """The folder that was named, on each node its own. A collective.

    Args:
        run: its `writers` are known.
        path: of the folder.
        check: gives the folder, or raises.

    Raises:
        CheckpointError: it is no checkpoint, a rank does not see it, or it is another on another node.
    """
    if any(gather_objects(os.path.isdir(path), run.processes)):
        check_seen(run, path)
    with alike(exchange_of(run.processes)):
        found = check(path)
    check_same(run, found)
    return found


def check_seen(run: Run, checkpoint: str) -> None:
    """Refuses to go on where a rank does not see the checkpoint. A collective.

    Raises:
        CheckpointError: on every rank.
    """
    seen = gather_objects(os.path.isdir(checkpoint), run.processes)
    if not all(seen):
        raise CheckpointError(
            f"Rank {seen.index(False)} does not see the checkpoint {checkpoint!r} that rank {seen.index(True)} sees: "
            "let output_dir be one folder for all nodes, or copy the checkpoint to the same place on each node and set "
            "save_on_each_node=True, which keeps the next ones there."
        )


def check_same(run: Run, checkpoint: str) -> None:
    """Refuses to go on where nodes have checkpoints of different runs at one place. A collective.

    Raises:
        CheckpointError: on every rank.
    """
    processes = run.processes
    if processes.world_size == processes.local_world_size or processes.world_size == 1:
        return
    if not _are_one(run, checkpoint, range(processes.world_size)):
        raise CheckpointError(
            f"{checkpoint!r} is not the same checkpoint on every node: copy it from one node to the others, or resume "
            "from one that is."
        )


def _are_one(run: Run, mine: str | None, ranks: Iterable[int]) -> bool:
    """Whether the checkpoints of these ranks are of one run, and of one step of it. A collective."""
    with alike(exchange_of(run.processes)):
        identity = _identity(mine) if mine is not None else None
    told = gather_objects(identity, run.processes)
    first, *others = (told[rank] for rank in ranks)
    return all(other == first for other in others)


def _identity(checkpoint: str) -> Any:
    """What tells a checkpoint from those of other runs: the launch, and the random states of all ranks."""
    if written_by_transformers(checkpoint):
        return None
    content = read_run(checkpoint)
    records = read_manifest(checkpoint)
    random = {name: record.digest for name, record in records.items() if name.startswith("random-")}
    return content["step"], content["configuration"].get("launch"), random


def _none_in_common(run: Run, steps: list[int | None]) -> CheckpointError:
    has = [
        f"rank {rank} has {f'{PREFIX}-{step}' if step is not None else 'none'}"
        for rank, step in zip(run.writers, steps, strict=True)
    ]
    return CheckpointError(
        f"The nodes have no valid checkpoint in common (as its last one {', '.join(has)}): copy one from a node that "
        "has it to the others, or start anew with another output_dir."
    )
