"""How long a run is: updates, epochs, batches and rows, from the arguments and the length of the data."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.errors import ConfigurationError

if TYPE_CHECKING:
    from drivetrain.arguments import TrainingArguments
    from drivetrain.elastic import Layout


@dataclass(frozen=True, slots=True)
class RunLength:
    """The length of a run.

    Attributes:
        max_steps: updates of the run.
        epochs: passes over the data, rounded up.
        batches: micro-batches an epoch; where the data have no length, as many as the run needs.
        rows: rows that the run trains on, for its throughput.
    """

    max_steps: int
    epochs: int
    batches: int
    rows: float

    @classmethod
    def of(cls, args: TrainingArguments, layout: Layout, batches: int | None, rows: int | None) -> RunLength:
        """From the arguments and the data.

        Args:
            args: the arguments.
            layout: how the rows of an update are laid out.
            batches: global batches of one epoch, None where the data have no length.
            rows: rows of one epoch.

        Raises:
            ConfigurationError: the data have no length, and `max_steps` is not set.
        """
        accumulation, rows_an_update = layout.accumulation, layout.rows
        if batches is None:
            if args.max_steps <= 0:
                raise ConfigurationError(
                    "The training data have no length, so max_steps must say how many updates the run has."
                )
            return cls(
                args.max_steps,
                sys.maxsize,
                args.max_steps * accumulation,
                args.max_steps * rows_an_update,
            )
        batches *= layout.split.parts
        updates = max(batches // accumulation, 1)
        if args.max_steps > 0:
            epochs = math.ceil(args.max_steps / updates)
            return cls(args.max_steps, epochs, batches, args.max_steps * rows_an_update)
        return cls(
            math.ceil(args.num_train_epochs * updates),
            math.ceil(args.num_train_epochs),
            batches,
            (rows or 0) * args.num_train_epochs,
        )


def every(steps: float | None, max_steps: int, default: int) -> int:
    """A number of updates, from a number or a share (below 1) of all updates."""
    if steps is None:
        return default
    return math.ceil(max_steps * steps) if 0 < steps < 1 else int(steps)
