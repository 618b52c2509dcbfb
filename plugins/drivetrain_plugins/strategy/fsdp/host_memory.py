"""Freed host memory, given back at once where a model is too large to be held whole."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 1 << 20


def give_back_at_once() -> None:
    """Lets glibc map blocks of 1 MB and more each by itself, for the rest of the process, so that they can be returned.

    Left to itself it soon keeps freed blocks of up to 32 MB for later; and since torch's blocks are aligned, the next
    one of the same size does not fit where the last one was. A process that gathers a model block by block then
    comes to hold more than the whole model. A mapping costs a page fault for each 4 kB, which is little beside what
    gathers a block. With another C library nothing is done. Reference: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    except (AttributeError, OSError):
        return
