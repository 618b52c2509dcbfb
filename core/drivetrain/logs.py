"""Where the log's lines go: to the program's own handlers, or, where it has none, to standard error.

Python's last resort shows warnings alone, so that `log_level="info"` would show nothing in a script that does not
configure logging.
"""

from __future__ import annotations

import logging
import sys

from drivetrain.secret import guard


class LastResort(logging.Handler):
    """Prints what no other handler shows, at any level that the logger lets through."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message alone, as Python's last resort does."""
        others = [*logging.getLogger().handlers, *logging.getLogger("drivetrain").handlers]
        if others == [self] and sys.stderr is not None:
            print(self.format(record), file=sys.stderr)


def speak(level: int) -> None:
    """Sets the level of drivetrain's log, has secrets struck from it, and sees that it is shown.

    A level that is in force is not set: under `log_level="passive"` the log goes on to follow the program's own.
    """
    logger = logging.getLogger("drivetrain")
    if logger.getEffectiveLevel() != level:
        logger.setLevel(level)
    guard(logger)
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        logger.addHandler(LastResort())
