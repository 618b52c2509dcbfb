"""What is due after a step, as flags that callbacks and listeners set and clear."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainerControl:
    """The documented flags.

    Attributes:
        should_training_stop: training ends after this step; stays set.
        should_epoch_stop: this epoch ends after this step; cleared when an epoch begins.
        should_save, should_evaluate, should_log: due after this step; cleared when a step begins, and when done.
    """

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False
