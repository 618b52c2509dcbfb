"""Between pytest and the runs: which runs the chosen tests need, run once, and what a test is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import torch

from drivetrain.testing.comparing import Finding
from drivetrain.testing.launching import Runs
from drivetrain.testing.plan import KINDS, Plan
from drivetrain.testing.scenario import Outcome, Scenario
from drivetrain.testing.spec import Spec

Test = TypeVar("Test", bound=Callable[..., None])

# Failing runs end their launch.
ORDER = {"raise": 1, "kill": 2}


@dataclass(frozen=True)
class Needs:
    """What a test of the contract needs.

    Attributes:
        runs: the scenarios, of a plan and the test's parameters.
        unless: why the test is skipped, of what the author said and the parameters; "" where it is not.
    """

    runs: Callable[..., Sequence[Scenario]]
    unless: Callable[..., str]


def needs(
    runs: Callable[..., Sequence[Scenario]], unless: Callable[..., str] = lambda spec, **_: ""
) -> Callable[[Test], Test]:
    """Marks a test of the contract with what it needs."""

    def mark(test: Test) -> Test:
        test.needs = Needs(runs, unless)  # type: ignore[attr-defined]
        return test

    return mark


@dataclass
class Bench:
    """The runs of one contract class.

    Attributes:
        plan: of its runs.
        runs: what runs them.
    """

    plan: Plan
    runs: Runs

    def run(self, wanted: Iterable[Scenario], known: dict[str, Outcome]) -> None:
        """Runs what is not known yet, and puts it beside what is."""
        new = {scenario.folder: scenario for scenario in wanted if scenario.folder not in known}
        self.runs.run(in_order(new.values()))
        known |= self.runs.outcomes


def in_order(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """What writes checkpoints before what goes on from them, so that nobody waits for himself; what fails is last."""
    return sorted(scenarios, key=lambda scenario: (ORDER.get(scenario.act, 0), scenario.resume is not None))


def needed(scenarios: Iterable[Scenario], plan: Plan) -> list[Scenario]:
    """With the runs that write what others go on from."""
    made: dict[str, Scenario] = {}
    for scenario in scenarios:
        made[scenario.folder] = scenario
        if scenario.resume is not None:
            writer = _writer(scenario, plan)
            made.setdefault(writer.folder, writer)
    return list(made.values())


def _writer(scenario: Scenario, plan: Plan) -> Scenario:
    folder = str(Path(scenario.resume or "").parents[1])
    for written in (
        plan.reference("whole"),
        plan.reference("whole", False),
        plan.own("whole"),
        plan.equal("whole"),
    ):
        if written.folder == folder:
            return written
    raise LookupError(f"No run writes {scenario.resume}.")


@dataclass
class Contract:
    """What a test is given.

    Attributes:
        spec: what the author said.
        plan: which runs there are.
        outcomes: of the runs that the test needs, in their order.
    """

    spec: Spec
    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)

    def fail(self, what: str, reasons: Sequence[str | Finding], meaning: str = "") -> NoReturn:
        """Ends the test with a message for the author."""
        lines = [what]
        lines += [f"  - {reason.text if isinstance(reason, Finding) else reason}" for reason in reasons]
        if meaning:
            lines += [f"What this usually means: {meaning}"]
        pytest.fail("\n".join(lines), pytrace=False)

    def ended(self, *outcomes: Outcome) -> None:
        """Fails where a run has not come to its end."""
        for outcome in outcomes or self.outcomes:
            if not outcome.trouble and len(outcome.ranks) == outcome.scenario.world:
                continue
            traces = [rank.trace for rank in outcome.ranks if rank.trace]
            reasons = [outcome.trouble, *(_last_frames(trace) for trace in traces[:1])]
            self.fail(f"{named(outcome.scenario)} did not come to its end.", reasons)


def _last_frames(trace: str) -> str:
    """Where in the code an error was raised, the innermost places."""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    return "raised at " + " < ".join(line.removeprefix("File ") for line in lines[:-4:-1])


def named(scenario: Scenario, article: str = "The") -> str:
    """A run in words."""
    kind = scenario.name.split("@")[0].split("-")[0]
    how = "1 process" if scenario.world == 1 else f"{scenario.world} processes"
    went_on = ""
    if scenario.resume is not None:
        path = Path(scenario.resume)
        by = "`single`'s" if "@" not in path.parents[1].name else f"the run {path.parents[1].name!r}'s"
        went_on = f", going on from {by} {path.name},"
    return f"{article} run {kind!r} under {scenario.strategy!r} with {how} ({KINDS[kind].says}){went_on}"


_known: dict[str, Outcome] = {}
"""Outcomes of this session, by folder. The references are those of every contract."""


def on_cuda(spec: Spec) -> bool:
    """Whether the runs are on CUDA devices, one a process."""
    if spec.device:
        return spec.device == "cuda"
    return torch.cuda.is_available() and torch.cuda.device_count() >= max(spec.processes)


def contract_of(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Contract:
    """What a test is given; its first call in a class runs what the chosen tests of that class need."""
    cls = request.cls
    bench: Bench | None = cls.__dict__.get("_bench")
    if bench is None:
        spec = Spec.of(cls)
        folder, single = factory.mktemp(cls.__name__), factory.getbasetemp() / "drivetrain-single"
        single.mkdir(exist_ok=True)
        bench = Bench(Plan(spec, folder, single, on_cuda(spec)), Runs(folder, spec.environment))
        cls._bench = bench
    plan, item = bench.plan, request.node
    if reason := why_skipped(item, plan.spec):
        pytest.skip(reason)
    wanted = scenarios_of(item, plan)
    if any(scenario.folder not in _known for scenario in wanted):
        chosen = [other for other in request.session.items if getattr(other, "cls", None) is cls]
        together = [
            scenario
            for other in chosen
            if not why_skipped(other, plan.spec)
            for scenario in scenarios_of(other, plan)
        ]
        bench.run(needed([*wanted, *together], plan), _known)
    return Contract(plan.spec, plan, [_known[scenario.folder] for scenario in wanted])


def why_skipped(item: Any, spec: Spec) -> str:
    """The reason, or ""."""
    name = item.originalname
    if name in spec.leaves_out:
        return spec.leaves_out[name]
    marked: Needs | None = getattr(item.function, "needs", None)
    return marked.unless(spec, **parameters(item)) if marked is not None else ""


def scenarios_of(item: Any, plan: Plan) -> list[Scenario]:
    """Those that a test needs; none of a test that the author has added."""
    marked: Needs | None = getattr(item.function, "needs", None)
    return list(marked.runs(plan, **parameters(item))) if marked is not None else []


def parameters(item: Any) -> dict[str, Any]:
    """Of a test."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}
