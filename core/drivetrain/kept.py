"""What an evaluation keeps: the rows of many batches, each in memory once.

Rows that come to the host are copied into blocks, so that a batch of few rows costs no object of its own. At the end
the blocks are put together one after another, each given back when its rows have been copied: the peak is what is kept
and one block more, which is an eighth or 16 MB, and every row is copied twice, however many there are.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from drivetrain.errors import DrivetrainError
from drivetrain.gathering import common_width, nested_map, nested_numpify
from drivetrain.memory import is_out_of_memory

_LEAST, _MOST = 1 << 16, 1 << 24  # bytes of a block
_OWN = 1 << 19  # bytes that are worth a piece of memory of their own
_SHARE = 8  # a block is as large as this part of what is kept already: so much more is the peak


class Rows:
    """The rows of one array, batch by batch.

    Args:
        padding: fills dimension 1 up to the widest batch.
    """

    def __init__(self, padding: float) -> None:
        self.padding = padding
        self._blocks: list[np.ndarray[Any, Any]] = []
        self._used = 0  # rows of the last block
        self._least, self._kept = _LEAST, 0

    def add(self, rows: np.ndarray[Any, Any]) -> None:
        """Copies some rows."""
        rows = np.atleast_1d(rows)
        if not self._blocks or not _fits(rows, self._blocks[-1]):
            self._begin(rows)
        done = 0
        while done < len(rows):
            if self._used == len(self._blocks[-1]):
                self._begin(rows)
            block = self._blocks[-1]
            count = min(len(block) - self._used, len(rows) - done)
            _fill(block[self._used : self._used + count], rows[done : done + count], self.padding)
            self._used += count
            done += count

    def _begin(self, rows: np.ndarray[Any, Any]) -> None:
        if self._blocks and self._used < len(self._blocks[-1]):
            self._blocks[-1] = self._blocks[-1][: self._used].copy()
        tail = rows.shape[1:]
        if tail:  # the next ones are likely to be as wide as the widest until now
            widths = [block.shape[1] for block in self._blocks[-1:] if block.ndim == rows.ndim]
            tail = (max([tail[0], *widths]), *tail[1:])
        size = max(rows.dtype.itemsize * math.prod(tail), 1)
        block = min(max(self._kept // _SHARE, self._least), _MOST)
        self._blocks.append(_memory((max(block // size, len(rows), 1), *tail), rows.dtype))
        self._used = 0
        self._kept += self._blocks[-1].nbytes

    def array(self) -> np.ndarray[Any, Any]:
        """All of them in one array; what was kept is given back.

        Raises:
            ValueError: the batches differ in another dimension than 0 and 1.
        """
        blocks, self._blocks = self._blocks, []
        if len(blocks) == 1 and self._used == len(blocks[0]):
            return blocks[0]
        blocks[-1] = blocks[-1][: self._used]
        width = common_width([block.shape for block in blocks])
        tail = blocks[0].shape[1:] if width is None else (width, *blocks[0].shape[2:])
        whole = np.empty((sum(map(len, blocks)), *tail), np.result_type(*{block.dtype for block in blocks}))
        row = 0
        blocks.reverse()
        while blocks:
            block = blocks.pop()
            _fill(whole[row : row + len(block)], block, self.padding)
            row += len(block)
        return whole


def _memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array in memory straight from the system where it is large, to which it goes back at once."""
    size = math.prod(shape) * dtype.itemsize
    if size < _OWN or dtype.hasobject:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def _fits(rows: np.ndarray[Any, Any], block: np.ndarray[Any, Any]) -> bool:
    """Whether rows can stand in a block, padded where they are narrower."""
    if rows.dtype != block.dtype or rows.ndim != block.ndim or rows.shape[2:] != block.shape[2:]:
        return False
    return rows.ndim == 1 or rows.shape[1] <= block.shape[1]


def _fill(place: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], padding: float) -> None:
    if place.ndim == 1 or place.shape[1] == rows.shape[1]:
        place[...] = rows
    else:
        place[:, : rows.shape[1]] = rows
        place[:, rows.shape[1] :] = padding


class Kept:
    """One kind of result: nested arrays or tensors of each batch, put together once at the end.

    Args:
        what: names it in errors.
        padding: fills dimension 1 up to the widest batch.
    """

    def __init__(self, what: str, padding: float = -100) -> None:
        self.what, self.padding = what, padding
        self._waiting: list[Any] = []  # on the device, as the batches gave them
        self._shape: Any = None
        self._rows: list[Rows] = []

    def add(self, value: Any) -> None:
        """Keeps a batch's; a tensor on a device stays there until `move`, so that nobody waits for it."""
        with kept_fits(self.what):
            if self._waiting or _on_device(value):
                self._waiting.append(value)
            else:
                self._take(value)

    def move(self) -> None:
        """What is on a device goes to host memory."""
        with kept_fits(self.what):
            waiting, self._waiting = self._waiting, []
            waiting.reverse()
            while waiting:
                self._take(waiting.pop())

    def array(self) -> Any:
        """Arrays of all rows; None where nothing was kept."""
        self.move()
        if self._shape is None:
            return None
        shape, self._shape = self._shape, None
        with kept_fits(self.what):
            self._rows.reverse()
            return nested_map(lambda _: self._rows.pop().array(), shape)

    def _take(self, value: Any) -> None:
        leaves: list[Any] = []
        nested_map(leaves.append, nested_numpify(value))
        shape = nested_map(lambda leaf: 1, value)
        if self._shape is None:
            self._shape, self._rows = shape, [Rows(self.padding) for _ in leaves]
        elif shape != self._shape:
            raise TypeError(
                "Batches of an evaluation give outputs of different structure: "
                f"{sorted({_told(shape), _told(self._shape)})}."
            )
        for rows, leaf in zip(self._rows, leaves, strict=True):
            rows.add(leaf)


@contextmanager
def kept_fits(what: str) -> Iterator[None]:
    """Says of an out-of-memory error that a smaller batch would not help.

    Raises:
        DrivetrainError: what is kept does not fit into memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DrivetrainError(
            f"Out of memory with the {what} of an evaluation, which are kept for all rows: keep less by "
            "preprocess_logits_for_metrics or prediction_loss_only=True, feed the metrics batch by batch with "
            "batch_eval_metrics=True, or set eval_accumulation_steps where it is the device's memory."
        ) from error


def _on_device(value: Any) -> bool:
    found = False

    def look(leaf: Any) -> None:
        nonlocal found
        found = found or (isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu")

    nested_map(look, value)
    return found


def _told(shape: Any) -> str:
    if isinstance(shape, (list, tuple, Mapping)):
        return f"{type(shape).__name__} of {len(shape)}"
    return "one array"
