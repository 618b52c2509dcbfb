"""What an author says about a strategy, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from drivetrain.errors import ConfigurationError, did_you_mean
from drivetrain.testing.scenario import ROWS_OF_A_BATCH

REFUSABLE = ("bf16", "clipping", "accumulation", "loss_scale")
SHARDABLE = ("parameters", "optimizer")
LAYERS = ("options", "arguments", "settings")


@dataclass(frozen=True)
class Spec:
    """The attributes of a `StrategyContract`, which documents them."""

    name: str
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: tuple[int, ...] = (2, 3)
    engine: str | tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    refuses: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""
    equal_with: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    leaves_out: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 2e-4
    bf16_tolerance: float = 2e-2
    learns: float = 0.5
    limit: float = 120.0
    patience: float = 20.0
    device: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, contract: type[Any]) -> Spec:
        """What a class says.

        Raises:
            ConfigurationError: something that it says cannot be; every problem is named.
        """
        names = [entry.name for entry in fields(cls) if entry.name != "name"]
        made = cls(contract.__name__, **{name: getattr(contract, name) for name in names})
        tests = [name for name in dir(contract) if name.startswith("test_")]
        problems = [f"{contract.__name__}: {problem}" for problem in made.problems(tests)]
        if problems:
            raise ConfigurationError(problems)
        return made

    @property
    def world(self) -> int:
        """The number of processes that everything is run with."""
        return self.processes[0]

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of classes."""
        return (self.engine,) if isinstance(self.engine, str) else tuple(self.engine)

    def layer(self, what: str, equal: bool) -> dict[str, Any]:
        """Options, arguments or settings: those with which the strategy is equal to `single`, or those as they are."""
        base: Mapping[str, Any] = getattr(self, what)
        return {**base, **(self.equal_with.get(what, {}) if equal and self.differs else {})}

    def problems(self, tests: list[str]) -> list[str]:
        """A sentence for each thing that cannot be."""
        found: list[str] = []
        if not self.strategy:
            found.append('strategy = "NAME" must name the strategy, as its entry point does.')
        if not self.processes or any(
            type(n) is not int or n < 1 or ROWS_OF_A_BATCH % n for n in self.processes
        ):
            found.append(
                f"processes = {self.processes!r} must be numbers that divide {ROWS_OF_A_BATCH}: (1,), (2,), (2, 4), ..."
            )
        if len(set(self.processes)) < len(self.processes):
            found.append(f"processes = {self.processes!r} names a number twice.")
        for what in self.shards:
            if what not in SHARDABLE:
                found.append(_unknown("shards", what, SHARDABLE))
        if isinstance(self.shards, str):
            found = [f'shards = ("{self.shards}",) must be a tuple.']
        for what, known in (
            ("refuses", REFUSABLE),
            ("equal_with", LAYERS),
            ("leaves_out", tuple(tests)),
        ):
            found += [_unknown(what, key, known) for key in getattr(self, what) if key not in known]
        for what in ("refuses", "leaves_out"):
            for key, reason in getattr(self, what).items():
                if not isinstance(reason, str) or not reason.strip():
                    found.append(f"{what}[{key!r}] must be a sentence that says why.")
        if not isinstance(self.differs, str):
            found.append("differs must be a sentence that says why the strategy is not equal to `single`.")
        if self.equal_with and not self.differs:
            found.append("equal_with needs differs, which says why the strategy is not equal without it.")
        if self.device not in ("", "cpu", "cuda"):
            found.append(f"device = {self.device!r} must be 'cpu', 'cuda' or ''.")
        for what in LAYERS:
            try:
                json.dumps([self.layer(what, True), self.layer(what, False)])
            except TypeError:
                found.append(f"{what} must hold what JSON can: the processes get them in a file.")
        return found


def _unknown(attribute: str, word: str, known: tuple[str, ...]) -> str:
    return f"{attribute} knows no {word!r}.{did_you_mean(word, known)} It takes: {', '.join(known)}."
