"""Torch's workers, and where each of them is, so that a resumed run's workers go on with the numbers they had.

Workers fetch ahead, and what they have fetched ahead is lost when a run stops. So a worker tells its states with
the very batch after which they are so (`drivetrain.data.reading`), and what counts here is the last batch
that was handed out. Torch has the workers take turns, beginning with worker 0; after a resume the workers
before the one whose turn it is give nothing in the first round.
"""

from __future__ import annotations

import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader

from drivetrain.data import randomness
from drivetrain.data.dealing import Dealt
from drivetrain.data.device import find_batch_size
from drivetrain.data.position import holds
from drivetrain.data.reading import Given, Note, Preparation, RowReader, Start, StreamReader
from drivetrain.data.stream import DealtStream

logger = logging.getLogger("drivetrain")


@dataclass(slots=True)
class Worker:
    """Where a worker is after its last batch that was handed out.

    Attributes:
        random: its random state, of the kinds that changed since it was seeded; of a stream, when `data` was taken.
        data: the state of its copy of an iterable data set, pickled; None where it has none.
        skip: of a stream, batches since.
        ended: of a stream, whether it is at its end.
        again: whether `data` is that of the end of the pass before.
        first: `random` as it was when the pass began.
        count: batches of the pass.
    """

    random: dict[str, Any] = field(default_factory=dict)
    data: bytes | None = None
    skip: int = 0
    ended: bool = False
    again: bool = False
    first: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def begin_pass(self) -> None:
        """The next pass begins where the last one ended."""
        self.skip, self.count, self.ended, self.again = 0, 0, False, self.data is not None
        self.first = dict(self.random)

    def hand_out(self, note: Note | None, batch: bool) -> None:
        """A batch, or its end without one, has been handed out."""
        self.count += batch
        self.skip += batch
        if note is not None:
            self.random.update(note.random)
            self.data, self.ended, self.again, self.skip = note.data, note.ended, False, 0

    def to_json(self, refused: Callable[[Any], None]) -> dict[str, Any]:
        """For a position.

        Args:
            refused: told a state of the data set that a checkpoint cannot hold, and then is not there.
        """
        state = {"random": dict(self.random), "skip": self.skip, "ended": self.ended}
        if self.data is None:
            return state
        data = pickle.loads(self.data)  # a worker of this very run made it
        if not holds(data):
            refused(data)
            return {"random": dict(self.first), "skip": self.count, "ended": False}
        return state | {"data": data, "again": self.again, "first": dict(self.first), "count": self.count}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Worker:
        """What `to_json` gave."""
        data = saved.get("data")
        return cls(
            dict(saved["random"]),
            None if data is None else pickle.dumps(data),
            saved["skip"],
            saved["ended"],
            saved.get("again", False),
            dict(saved.get("first", {})),
            saved.get("count", saved["skip"]),
        )

    def start(self) -> Start:
        """Where a new worker goes on."""
        data = None if self.data is None else pickle.loads(self.data)
        return Start(self.random, data, self.skip, self.ended, self.again)


class Remaining:
    """The batches that are left, as a sampler for torch; remembers how each was dealt."""

    def __init__(self) -> None:
        self.dealt: Iterator[Dealt] = iter(())
        self.starts: list[Start] = []
        self.next_worker = 0
        self.sent: deque[Dealt] = deque()

    def __iter__(self) -> Iterator[Any]:
        starts, self.starts = self.starts, []
        self.sent.clear()
        yield from starts[: self.next_worker]
        left = iter(starts[self.next_worker :])
        for item in self.dealt:
            self.sent.append(item)
            yield item[0], next(left, None)


class Workers:
    """The workers of a loader over a pass, or over several where they are persistent.

    Attributes:
        seeded_from: the state of torch's generator from which it draws their base seed; set before the first pass.
        base_seed: that seed.
        passes: that were begun; the base seed is drawn in the first.
        each: where each of them is.
        turn: whose turn it is.
        known: False where a pass was broken off and nobody knows where its workers are.
        resumed: whether they go on where those of another run were.
    """

    def __init__(self, loader: Any, noted: bool) -> None:
        self.each = [Worker() for _ in range(loader.num_workers)]
        self.noted = noted
        self.seeded_from: torch.Tensor | None = None
        self.base_seed: int | None = None
        self.passes = 0
        self.turn = 0
        self.known = True
        self.resumed = False
        self._finished = True
        self._remaining = Remaining()
        self._shadow: DataLoader[Any] | None = None

    def to_json(self, refused: Callable[[Any], None]) -> dict[str, Any] | None:
        """For a position; `refused` as for `Worker.to_json`."""
        if not self.known or self.seeded_from is None:
            return None
        return {
            "seeded_from": randomness.tensor_to_text(self.seeded_from),
            "base_seed": self.base_seed,
            "passes": self.passes,
            "turn": self.turn,
            "each": [worker.to_json(refused) for worker in self.each],
        }

    @property
    def reread(self) -> int:
        """Batches that they read again, for want of a state of the data set."""
        return sum(worker.skip for worker in self.each if worker.data is None)

    def resume(self, saved: dict[str, Any]) -> None:
        """Goes on where workers of another run were; at another number of them their states are left behind."""
        self.passes, self.base_seed = saved["passes"], saved["base_seed"]
        if len(saved["each"]) != len(self.each):
            return
        self.seeded_from = randomness.text_to_tensor(saved["seeded_from"])
        self.turn = saved["turn"]
        self.each = [Worker.from_json(worker) for worker in saved["each"]]
        self.resumed = True

    def end(self) -> None:
        """Ends them, once nobody reads from them any more."""
        self._shadow = None

    def begin_pass(self) -> None:
        """A pass begins at its beginning."""
        self.passes += 1
        self.turn = 0
        for worker in self.each:
            worker.begin_pass()

    def read_rows(self, loader: Any, dealt: Iterator[Dealt]) -> Iterator[Any]:
        """Has batches of a map-style data set read."""
        remaining, batched = self._remaining, loader.batch_sampler is not None
        if self._shadow is None:
            reader = RowReader(loader.dataset, loader.collate_fn, batched, self.noted)
            self._shadow = self._loader(loader, reader, sampler=remaining)
        remaining.dealt, remaining.next_worker = dealt, self.turn
        if self.resumed or not self._finished:
            # Persistent workers whose last pass was broken off are ahead of it, and are set back.
            remaining.starts = [worker.start() for worker in self.each]
        for given in self._given():
            item = remaining.sent.popleft()
            if batched:
                yield given.batch, item, len(item[0]) if item[1] else 0
            else:
                yield given.batch, item, find_batch_size(given.batch) or 0

    def read_stream(self, loader: Any, stream: DealtStream) -> Iterator[Any]:
        """Has batches of an iterable data set read."""
        if self._shadow is None:
            starts = [worker.start() for worker in self.each] if self.resumed else []
            reader = StreamReader(stream, loader.collate_fn, starts, self.turn, self.noted)
            self._shadow = self._loader(loader, reader)
        elif not self._finished:
            self.known = False
        alone = stream.world == 1
        for given in self._given():
            if given.dealt is None:
                continue
            rows = find_batch_size(given.batch) or 0
            if alone:
                yield given.batch, Dealt(None, 1.0, (rows,)), rows
            else:
                yield given.batch, Dealt(*given.dealt), rows if given.dealt[1] else 0

    def _given(self) -> Iterator[Given]:
        assert self._shadow is not None
        items = iter(self._shadow)
        self._finished = self.resumed = False
        each, count = self.each, len(self.each)
        for given in items:
            if given is not None:
                each[given.worker].hand_out(given.note, given.dealt is not None or given.batch is not None)
                self.turn = (given.worker + 1) % count
                yield given
        self._finished = True

    def _loader(self, loader: Any, reader: Any, **options: Any) -> DataLoader[Any]:
        generator = torch.Generator()
        assert self.seeded_from is not None
        generator.set_state(self.seeded_from)
        return DataLoader(
            reader,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory and torch.accelerator.is_available(),
            timeout=loader.timeout,
            worker_init_fn=Preparation(loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            **options,
        )


_persistent: WeakKeyDictionary[Any, Workers] = WeakKeyDictionary()


def workers_of(loader: Any, saved: dict[str, Any] | None, begins: bool, noted: bool) -> Workers:
    """The workers of a pass that is about to begin, or to go on.

    Args:
        loader: with workers.
        saved: what `Workers.to_json` gave: where they go on.
        begins: the pass begins at its beginning.
        noted: whether anybody will ask where they are.
    """
    workers = _persistent.pop(loader, None) if loader.persistent_workers else None
    if workers is None or saved is not None or not begins:
        workers = Workers(loader, noted)
        if saved is not None:
            workers.resume(saved)
    if begins:
        workers.begin_pass()
    else:
        workers.passes = max(workers.passes, 1)
    if loader.persistent_workers:
        _persistent[loader] = workers
    return workers


def end_workers(loader: Any) -> None:
    """Ends a loader's persistent workers now: when garbage is collected it would take five seconds."""
    workers = _persistent.pop(loader, None) if getattr(loader, "persistent_workers", False) else None
    if workers is not None:
        workers.end()


def _as_it_is(given: Any) -> Any:
    return given
