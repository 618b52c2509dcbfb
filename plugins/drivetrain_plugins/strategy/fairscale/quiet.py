"""FairScale speaks through the root logger, whose first use would set up logging for the whole process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def root_logger_left_alone() -> Iterator[None]:
    """While open, a word to the root logger installs no handler."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
