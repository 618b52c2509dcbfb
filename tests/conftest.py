"""What every test finds as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def the_level_of_the_log() -> Iterator[None]:
    """A Trainer sets the level of drivetrain's log by its `log_level`, and nobody sets it back."""
    yield
    logging.getLogger("drivetrain").setLevel(logging.NOTSET)
