"""The stages of a Trainer: it is made ("init"), trains ("train"), evaluates ("eval") and predicts ("test")."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivetrain.run import Run

# What 4.34.0 calls a stage after the method that it is in.
_NAMES = {
    "__init__": "init",
    "train": "train",
    "_inner_training_loop": "train",
    "evaluate": "eval",
    "predict": "test",
}


class Stages:
    """Tells the listeners when a stage begins and ends.

    It is the Trainer's `_memory_tracker` as well: copies of 4.34.0's methods call that at their beginning and end.

    Args:
        run: the trainer's.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def begin(self, stage: str) -> None:
        """A stage begins, perhaps within another."""
        events = self.run.plan.events
        for call in events.on_stage_begin if events is not None else ():
            call(self.run, stage)

    def end(self, stage: str, metrics: dict[str, float]) -> None:
        """A stage has ended; listeners may add to its metrics."""
        events = self.run.plan.events
        for call in events.on_stage_end if events is not None else ():
            call(self.run, stage, metrics)

    def start(self) -> None:
        """The stage that bears the caller's name begins."""
        self.begin(_NAMES[sys._getframe(1).f_code.co_name])

    def stop_and_update_metrics(self, metrics: dict[str, float] | None = None) -> None:
        """The stage that bears the caller's name has ended."""
        self.end(_NAMES[sys._getframe(1).f_code.co_name], {} if metrics is None else metrics)
