"""What runs in a worker: it reads a batch, and tells which of its states reading it has changed.

A worker begins with its `Start`, where it goes on with what another began; and with a batch comes a `Note`
where a state has changed. Both cross between processes, so they are made of plain things.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from drivetrain.data import randomness
from drivetrain.data.dealing import Dealt
from drivetrain.data.stream import DealtStream, is_stateful, next_pass

STATE_BYTES_A_BATCH = 1 << 16
"""A data set's state is taken after each batch where it has no more bytes, else as seldom as makes it so few."""


class Start(NamedTuple):
    """Where a worker begins.

    Attributes:
        random: its random state, of the kinds that are not what its seed makes them; in the form of JSON.
        data: the state of its copy of the data set; None where it has none.
        skip: batches that it gave after that, to be read again.
        ended: nothing is left of the pass.
        again: the state of the data set is that of the end of the pass before.
    """

    random: dict[str, Any]
    data: Any = None
    skip: int = 0
    ended: bool = False
    again: bool = False


class Note(NamedTuple):
    """What a worker's states are after a batch.

    Attributes:
        random: the kinds that have changed since the note before, in the form of JSON.
        data: the state of its copy of the data set, pickled; None where it has none.
        ended: whether the data set has come to its end.
    """

    random: dict[str, Any]
    data: bytes | None
    ended: bool


class Given(NamedTuple):
    """What a worker gives.

    Attributes:
        batch: collated.
        dealt: how its rows were dealt, of a stream; None for a map-style data set, and at a stream's end, where
            there is no batch.
        worker: its number.
        note: None where nothing has changed.
    """

    batch: Any
    dealt: Dealt | None
    worker: int
    note: Note | None


class Preparation:
    """The loader's `worker_init_fn`, to which `get_worker_info().dataset` is the loader's own data set."""

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        """Runs in each worker, after torch has seeded it."""
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it is read-only
        if self.then is not None:
            self.then(worker)


class RowReader(Dataset[Any]):
    """Reads batches of a map-style data set.

    Args:
        dataset: the data set.
        collate: makes a batch of rows.
        batched: whether a batch is named by a list of rows, or by one index.
        noted: whether states are told.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], batched: bool, noted: bool) -> None:
        self.dataset, self.collate, self.batched, self.noted = dataset, collate, batched, noted
        self._watch: randomness.Watch | None = None

    def __getitem__(self, item: tuple[Any, Start | None] | Start) -> Given | None:
        """A batch.

        Args:
            item: its rows, and where the worker begins if it is to begin anywhere; or that alone, and then there
                is no batch.
        """
        if isinstance(item, Start):
            self._begin(item)
            return None
        rows, start = item
        if start is not None:
            self._begin(start)
        elif self.noted and self._watch is None:
            self._watch = randomness.Watch()
        dataset = self.dataset
        if not self.batched:
            data = dataset[rows]
        elif hasattr(dataset, "__getitems__") and dataset.__getitems__:
            data = dataset.__getitems__(rows)
        else:
            data = [dataset[row] for row in rows]
        batch = self.collate(data)
        note = None
        if self._watch is not None:
            changed = self._watch.changed()
            if changed:
                note = Note(randomness.to_json(changed), None, False)
        return Given(batch, None, _worker(), note)

    def _begin(self, start: Start) -> None:
        randomness.restore(randomness.from_json(start.random))
        self._watch = randomness.Watch() if self.noted else None


class StreamReader(IterableDataset[Any]):
    """Reads batches of an iterable data set, and gives one thing more at its end.

    Args:
        stream: cuts the data set into batches.
        collate: makes a batch of rows.
        starts: where each worker begins with its first pass; none for the beginning.
        next_worker: whose turn it is then. Torch begins with worker 0, so those before it give None first.
        noted: whether states are told.
    """

    def __init__(
        self,
        stream: DealtStream,
        collate: Callable[[Any], Any],
        starts: Sequence[Start],
        next_worker: int,
        noted: bool,
    ) -> None:
        self.stream, self.collate, self.noted = stream, collate, noted
        self.dataset = stream.dataset
        self._starts, self._next_worker = starts, next_worker
        self._again = False

    def __iter__(self) -> Iterator[Given | None]:
        worker = _worker()
        start = self._starts[worker] if self._starts else Start({}, again=self._again)
        waits = bool(self._starts) and worker < self._next_worker
        self._starts, self._again = (), start.ended
        if waits:
            yield None
        randomness.restore(randomness.from_json(start.random))
        if start.data is not None:
            self.dataset.load_state_dict(start.data)
        watch = randomness.Watch() if self.noted else None
        if not start.ended:
            yield from self._batches(worker, start, watch)
        if watch is not None:
            yield Given(None, None, worker, self._note(watch, self._state(), True))

    def _batches(self, worker: int, start: Start, watch: randomness.Watch | None) -> Iterator[Given]:
        stream, collate = self.stream, self.collate
        parts = next_pass(lambda: iter(stream)) if start.again else iter(stream)
        skip = start.skip
        stateful = watch is not None and is_stateful(self.dataset)
        every, since, count = 1, 0, 0
        for rows, dealt in parts:
            batch = collate(rows)
            count += 1
            if count <= skip:
                continue
            since += 1
            note = None
            # Between two ranks' parts of a global batch the rows of the second are not the data set's any more.
            if stateful and since >= every and count % len(stream.ranks) == 0:
                state = self._state()
                assert state is not None
                assert watch is not None
                every, since = max(-(-len(state) // STATE_BYTES_A_BATCH), 1), 0
                note = self._note(watch, state, stream.ended)
            yield Given(batch, dealt, worker, note)

    def _state(self) -> bytes | None:
        return pickle.dumps(self.dataset.state_dict()) if is_stateful(self.dataset) else None

    @staticmethod
    def _note(watch: randomness.Watch, data: bytes | None, ended: bool) -> Note:
        return Note(randomness.to_json(watch.changed()), data, ended)


def _worker() -> int:
    info = get_worker_info()
    assert info is not None
    return info.id
