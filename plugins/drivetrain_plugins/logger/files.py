"""Where loggers that write a file of their own put it, and what a run that begins leaves in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from drivetrain_plugins.logger.facts import Facts
from drivetrain_plugins.logger.options import FileOptions

T = TypeVar("T")


def log_file(options: FileOptions, facts: Facts, name: str) -> str:
    """The path of the file: the option `path`, else `name` in the output folder, or in the trial's folder of it.

    Its folder is made.
    """
    folder = os.path.join(facts.output_dir, facts.trial_name or "")
    path = os.path.join(folder, options.path or name)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return path


def staying(rows: Sequence[T], step_of: Callable[[T], int], facts: Facts) -> list[T]:
    """The rows of a file that stay in it.

    A training that begins replaces what an earlier one has left; one that is resumed goes on after the last row that
    its checkpoint knows; an evaluation by itself, and a row that comes after the end, are added.

    Args:
        rows: of the file, in their order.
        step_of: the step of a row.
        facts: of the run.
    """
    if not facts.is_training or facts.again:
        return list(rows)
    at_step = [row for row in rows if step_of(row) == facts.step]
    return [row for row in rows if step_of(row) < facts.step] + at_step[: facts.rows_at_step]
