"""What torch.compile compiled while somebody watched: how often, how long, and why again.

torch tells this by no function of `torch.compiler`; the records read here are those that its own logs are
written from (`torch._dynamo.utils`), and they are read alone, never reset.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch._dynamo import callback, utils


@dataclass
class Compilations:
    """The outcome.

    Attributes:
        graphs: functions compiled, each time that one was.
        seconds: of the clock, all compilations together.
        again: for each function that was compiled once more, where it is, and torch's reason.
        breaks: where a graph broke off, and torch's reason; once for each place.
        given_up: functions that reached the limit of recompilations, and the last reason.
    """

    graphs: int = 0
    seconds: float = 0.0
    again: list[tuple[str, str]] = field(default_factory=list)
    breaks: dict[str, str] = field(default_factory=dict)
    given_up: list[tuple[str, str]] = field(default_factory=list)


class Watch:
    """Watches from its making until `close`. torch has one record for a process, whoever it is that compiles."""

    def __init__(self) -> None:
        self.found = Compilations()
        self._begun: float | None = None
        self._places: dict[str, str] = {}
        self._last: Any = next(reversed(utils.get_compilation_metrics()), None)
        self._breaks = len(utils.graph_break_reasons)
        callback.callback_handler.register_start_callback(self._start)
        callback.callback_handler.register_end_callback(self._end)

    def _start(self, *_: object) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: object) -> None:
        if self._begun is not None:
            self.found.seconds += time.perf_counter() - self._begun
            self._begun = None
        self.read()  # torch keeps no more than the last few

    def read(self) -> Compilations:
        """What there is until now."""
        for record in self._records():
            self._add(record)
        reasons = utils.graph_break_reasons
        for reason in reasons[min(self._breaks, len(reasons)) :]:
            place = _place(*_last_frame(reason.user_stack)) if reason.user_stack else "?"
            self.found.breaks.setdefault(place, _line(reason.reason))
        self._breaks = len(reasons)
        return self.found

    def _records(self) -> list[Any]:
        """The records since the last look, the oldest first."""
        fresh: list[Any] = []
        for record in reversed(utils.get_compilation_metrics()):
            if record is self._last:
                break
            fresh.append(record)
        if fresh:
            self._last = fresh[0]
        return fresh[::-1]

    def _add(self, record: Any) -> None:
        # "7/2" is the second time after the first that the seventh function was compiled.
        function = (record.compile_id or "").partition("/")[0]
        reason = _line(record.recompile_reason or "")
        if "limit exceeded" in (record.fail_reason or "").split("\n", 1)[0]:
            self.found.given_up.append((self._places.get(function, "a function"), reason))
        elif record.co_name is not None:  # the others are the backward passes of these
            place = _place(record.co_filename, record.co_firstlineno, record.co_name)
            self._places[function] = place
            self.found.graphs += bool(record.has_guarded_code)
            if reason:
                self.found.again.append((place, reason))

    def close(self) -> None:
        """Ends it."""
        handler = callback.callback_handler
        # A reset of torch's compiler has taken them away already.
        with contextlib.suppress(ValueError):
            handler.remove_start_callback(self._start)
        with contextlib.suppress(ValueError):
            handler.remove_end_callback(self._end)


def _last_frame(stack: Any) -> tuple[str, int, str]:
    frame = stack[-1]
    return frame.filename, frame.lineno, frame.name


def _place(filename: str | None, line: int | None, name: str) -> str:
    return f"{name} ({os.path.basename(filename or '?')}:{line})"


def _line(reason: str) -> str:
    """The first line of a reason, without the number of the compilation that it speaks of."""
    first = reason.strip().split("\n", 1)[0]
    number, _, rest = first.partition(": ")
    return rest if rest and number.replace("/", "").isdigit() else first


def sentences(found: Compilations, most: int = 5) -> Iterator[str]:
    """The recompilations and the graph breaks in words, the most frequent first.

    Reasons that differ in numbers alone are of one kind: the first stands for them.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    for place, reason in found.again:
        kinds.setdefault((place, re.sub(r"\d+", "0", reason)), []).append(reason)
    for (place, _), reasons in sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:most]:
        times = f", {len(reasons)} times of this kind" if len(reasons) > 1 else ""
        yield f"compiled again{times}: {place}: {reasons[0]}"
    for place, reason in list(found.breaks.items())[:most]:
        yield f"graph broken off: {place}: {reason}"
    left = max(len(kinds) - most, 0) + max(len(found.breaks) - most, 0)
    if left:
        yield f"and for {left} other reasons"
