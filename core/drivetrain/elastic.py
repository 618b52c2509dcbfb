"""Going on with another number of processes, with the same rows in every update.

A checkpoint says what a global batch was: the batches of so many processes. Fewer processes run it in several
micro-batches, more processes run smaller ones; the accumulation follows. Where the user asks for other numbers
on purpose, those hold, and the run goes on from the row that it had come to.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.checkpoint import read_run, written_by_transformers
from drivetrain.data import Split, unit_of
from drivetrain.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

_MOST = 1 << 16  # processes that an error proposes


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of an update are laid out.

    Attributes:
        batch_size: rows of a process's batch, as the arguments say.
        split: what a global batch is, and in how many parts a process runs its share.
        batches: global batches an update.
    """

    batch_size: int
    split: Split
    batches: int

    @property
    def accumulation(self) -> int:
        """Micro-batches an update."""
        return self.batches * self.split.parts

    @property
    def rows(self) -> int:
        """Rows an update, over all processes."""
        return self.global_batch * self.batches

    @property
    def global_batch(self) -> int:
        """Rows of a global batch, whoever runs how many of them."""
        return self.batch_size * self.split.world

    def to_json(self) -> dict[str, int]:
        """For a checkpoint."""
        return {
            "batch_size": self.batch_size,
            "world": self.split.world,
            "parts": self.split.parts,
            "batches": self.batches,
        }

    @classmethod
    def from_json(cls, saved: dict[str, int]) -> Layout:
        """What `to_json` gave.

        Raises:
            CheckpointError: it is no layout.
        """
        names = ("batch_size", "world", "parts", "batches")
        if not isinstance(saved, dict) or not all(
            type(saved.get(name)) is int and 0 < saved[name] < 2**31 for name in names
        ):
            raise CheckpointError(
                "The checkpoint's run.json holds no layout of a batch that can be used; resume from an earlier "
                "checkpoint."
            )
        return cls(saved["batch_size"], Split(saved["world"], saved["parts"]), saved["batches"])


def layout(run: Run, batch_size: int, checkpoint: str | None, parts: int = 1) -> Layout:
    """The layout of a run: that of the arguments, or that of its checkpoint where only the processes are others.

    Args:
        run: its processes stand.
        batch_size: rows of a process's batch.
        checkpoint: what the run goes on from.
        parts: micro-batches that a batch is run in, so that fewer rows are in memory at once.

    Raises:
        ConfigurationError: this number of processes cannot share the checkpoint's global batch.
    """
    world, accumulation = run.processes.world_size, run.args.gradient_accumulation_steps
    asked = Layout(batch_size, Split(world, parts), accumulation)
    tells = checkpoint is not None and not written_by_transformers(checkpoint)
    saved = saved_layout(read_run(checkpoint)["position"]) if checkpoint is not None and tells else None
    if saved is None or saved.split.world == world or saved.batch_size != batch_size:
        return asked
    fewer = -(-saved.split.world // world)
    if accumulation not in (saved.batches, saved.batches * fewer):
        return asked
    parts *= fewer
    kept = Layout(batch_size, Split(saved.split.world, parts), saved.batches)
    rows = kept.global_batch
    if not _fits(rows, saved.split.world, world):
        fitting = [str(n) for n in range(1, min(rows, _MOST) + 1) if _fits(rows, saved.split.world, n)]
        raise _does_not_fit(world, rows, saved.split.world, fitting)
    if run.is_main_process:
        logger.warning(
            "%s was written by %d process(es), and %d go on: the global batch stays %d rows, each process running %d "
            "micro-batch(es) of %d rows for it.",
            checkpoint, saved.split.world, world, rows, parts, rows // (world * parts),
        )  # fmt: skip
    return kept


def check_loader(loader: Any, layout: Layout, processes: Any) -> None:
    """Refuses loaders whose batches cannot be dealt out otherwise than they are made.

    Raises:
        ConfigurationError: the loader's batches belong to the processes that the run began with.
    """
    now, before = processes.world_size, layout.split.world
    if now == before and layout.split.parts == 1:
        return
    unit, rows = unit_of(loader), layout.global_batch
    if now == before and unit != "row":
        raise ConfigurationError(
            "keep_effective_batch_size=True runs the rows of a batch in parts, and this loader gives whole batches: "
            "leave it out, and let the loader make batches of self._train_batch_size rows."
        )
    if unit == "own":
        raise _does_not_fit(now, rows, before, [str(before)])
    if unit == "batch" and before % now:
        fitting = [str(n) for n in range(1, min(before, _MOST) + 1) if before % n == 0]
        raise _does_not_fit(now, rows, before, fitting)


def saved_layout(position: dict[str, Any] | None) -> Layout | None:
    """The layout of the run that wrote a checkpoint, by the checkpoint's position; None where it tells none."""
    return Layout.from_json(position["layout"]) if position and position.get("layout") else None


def micro_batches(done: int, before: Layout | None, now: Layout, carries: bool) -> int:
    """Micro-batches that are done, counted as the run counts them now.

    Args:
        done: as the checkpoint counts them.
        before, now: the layouts.
        carries: whether gradients of an unfinished update are carried along.

    Raises:
        CheckpointError: they are, and an update has other rows now.
    """
    if before is None or before == now:
        return done
    if (before.global_batch, before.batches) == (now.global_batch, now.batches):
        return done // before.split.parts * now.split.parts
    if carries:
        raise CheckpointError(
            f"The checkpoint carries gradients of an unfinished update of {before.rows} rows, and an update has "
            f"{now.rows} now: resume with the batch size and the accumulation that it was written with, or from "
            "a checkpoint that was not written at the end of an epoch."
        )
    updates, left = divmod(done, before.accumulation)
    return updates * now.accumulation + min(left, now.accumulation - 1)


def _fits(rows: int, before: int, now: int) -> bool:
    return rows % (now * -(-before // now)) == 0


def _does_not_fit(now: int, rows: int, before: int, fitting: list[str]) -> ConfigurationError:
    shown = fitting if len(fitting) <= 8 else [*fitting[:7], "...", fitting[-1]]
    return ConfigurationError(
        f"{now} process(es) cannot share the global batch of {rows} rows that {before} process(es) began with: start "
        f"{', '.join(shown)}, or choose another per_device_train_batch_size or gradient_accumulation_steps."
    )
