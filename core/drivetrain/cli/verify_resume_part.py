"""One of the runs of `drivetrain checkpoints verify-resume`, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain import settings
from drivetrain.cli import jobs
from drivetrain.cli.hidden_state import changed, hidden_state
from drivetrain.errors import CheckpointError
from drivetrain.plugin import hookimpl

if TYPE_CHECKING:
    from drivetrain.run import Run

FACTS = "facts.json"


class Keeper:
    """Has checkpoints written after some updates, puts them aside, and ends the process after the last of them.

    The end is that of a killed process: nothing that follows the end of training is done.

    Args:
        folder: where the checkpoints go.
        steps: after which updates.
    """

    def __init__(self, folder: str, steps: Sequence[int]) -> None:
        self.folder = folder
        self.steps = steps
        self.trainer: Any = None
        self._due: int | None = None
        self._before: dict[str, str] = {}

    @hookimpl(trylast=True)
    def on_train_begin(self) -> None:
        """Notes what no checkpoint holds."""
        self._before = hidden_state(self.trainer)

    @hookimpl(trylast=True)
    def on_step_end(self, run: Run) -> None:
        """A row of the log after each update, and a checkpoint where one is wanted."""
        run.request_log()
        if run.state.global_step in self.steps:
            run.request_save()
            self._due = run.state.global_step

    @hookimpl(tryfirst=True)
    def on_step_begin(self, run: Run) -> None:
        """The checkpoint of the update before is written by now."""
        self._keep(run)

    @hookimpl(tryfirst=True)
    def on_substep_end(self, run: Run) -> None:
        """The same, where an update reaches over the end of an epoch."""
        self._keep(run)

    @hookimpl(tryfirst=True)
    def on_epoch_end(self, run: Run) -> None:
        """The same, before what is due at the end of an epoch writes it anew."""
        self._keep(run)

    def _keep(self, run: Run) -> None:
        if self._due is None:
            return
        step, self._due = self._due, None
        self.trainer._finish_saving(run)
        run.processes.barrier()
        name = f"checkpoint-{step}"
        written = os.path.join(run.args.output_dir, name)
        if run.is_main_process:
            if not os.path.isdir(written):
                raise CheckpointError(
                    f"The run wrote no checkpoint at step {step}, although it was asked for: a callback takes "
                    "should_save back."
                )
            shutil.copytree(written, os.path.join(self.folder, name), copy_function=os.link)
            if step == self.steps[-1]:
                self._tell(run)
        run.processes.barrier()
        if step == self.steps[-1]:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _tell(self, run: Run) -> None:
        """What helps to guess why a resume is not exact."""
        import torch

        facts = {
            "hidden": changed(self._before, hidden_state(self.trainer)),
            "workers": run.args.dataloader_num_workers,
            "device": run.device.type,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        Path(self.folder, FACTS).write_text(json.dumps(facts), encoding="utf-8")


def run_part(folder: str, steps: Sequence[int], words: Sequence[str]) -> None:
    """Trains what a config describes, until the last of some updates is done. Does not return.

    Args:
        folder: where the checkpoints after these updates go.
        steps: the updates.
        words: CONFIG.toml, and what overrides it.

    Raises:
        DrivetrainError: the run cannot be made, or has fewer updates.
    """
    config, args = jobs.prepare(words)
    from drivetrain.resolve import resolve

    resolve(args, settings=settings.load())
    keeper = Keeper(folder, steps)
    made = jobs.assemble(config, args, jobs.Job(True, False, False), plugins=[keeper])
    keeper.trainer = made.trainer
    made.trainer.train()
    raise CheckpointError(
        f"Training ended at step {made.trainer.state.global_step}, before step {steps[-1]}: give --steps a smaller "
        "even number, or leave out what stops it early."
    )
