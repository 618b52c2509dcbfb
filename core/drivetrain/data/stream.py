"""The batches of an iterable dataset, in whichever process reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from drivetrain.data import randomness
from drivetrain.data.dealing import Dealt, deal, dealt_to, dealt_units


class DealtStream(IterableDataset[Any]):
    """The rows of an iterable dataset, the parts of some ranks of each global batch at a time.

    Gives (what to collate, its `Dealt`). Without a batch size each item of the dataset is a batch already.

    Attributes:
        ended: whether the pass begun last has come to the dataset's end.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None,
        drop_last: bool,
        world: int,
        ranks: Sequence[int],
        done: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.world, self.ranks, self.done = world, ranks, done
        self.ended = False

    def __iter__(self) -> Iterator[tuple[Any, Dealt]]:
        # At once, not at the first row: the dataset may draw random numbers when its iterator is made.
        rows = iter(self.dataset)
        for _ in islice(rows, self.done):
            pass
        self.ended = False
        return self._deal(self._to_its_end(rows))

    def _to_its_end(self, rows: Iterator[Any]) -> Iterator[Any]:
        yield from rows
        self.ended = True

    def _deal(self, rows: Iterator[Any]) -> Iterator[tuple[Any, Dealt]]:
        if self.batch_size is None:
            for unit in dealt_to(self.ranks, dealt_units, rows, self.world):
                yield unit.rows, Dealt(None, unit.weight, ())
            return
        group = self.batch_size * self.world
        whole = (self.batch_size,) * self.world
        while batch := list(islice(rows, group)):
            if len(batch) < group and self.drop_last:
                return
            for rank in self.ranks:
                if len(batch) == group:
                    first = rank * self.batch_size
                    yield batch[first : first + self.batch_size], Dealt(None, 1.0, whole)
                else:
                    part = deal(batch, self.world, rank)
                    yield part.rows, Dealt(None, part.weight, part.shares)
            if len(batch) < group:
                return


def is_stateful(owner: Any) -> bool:
    """Whether something tells its state, and takes it."""
    return hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")


def next_pass(
    begin: Callable[[], Iterator[Any]], generators: Sequence[torch.Generator] = ()
) -> Iterator[Any]:
    """A pass, after the state that the pass before it ended with was set.

    To some data this state means a new pass, to others the end of the old one, which then has nothing left:
    there it is left behind, and the new pass begun with the same random numbers.

    Args:
        begin: begins a pass.
        generators: which it draws from, beside the host's.
    """
    before = randomness.capture(), [generator.get_state() for generator in generators]
    items = begin()

    def batches() -> Iterator[Any]:
        empty = True
        for item in items:
            empty = False
            yield item
        if empty:
            randomness.restore(before[0])
            for generator, state in zip(generators, before[1], strict=True):
                generator.set_state(state)
            yield from begin()

    return batches()
