"""Contracts of many faulty strategies, tried in one launch: what a test of the contract says of each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drivetrain.testing import StrategyContract
from drivetrain.testing.launching import Runs
from drivetrain.testing.machinery import Contract, in_order, needed
from drivetrain.testing.plan import Plan
from drivetrain.testing.scenario import Outcome
from drivetrain.testing.spec import Spec

MUTANTS = Path(__file__).with_name("mutants")


@dataclass(frozen=True)
class Mutant:
    """A strategy that is wrong, or of which something wrong is said.

    Attributes:
        fault: the option of `replica`.
        test: of the contract, that finds it; with its parameter.
        says: words that its message must have.
        claims: attributes of the contract class.
    """

    fault: str
    test: str
    says: tuple[str, ...]
    claims: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For ids and folders."""
        return "-".join(filter(None, (self.fault.replace(" ", "_"), self.test, *self.claims)))

    @property
    def method(self) -> tuple[str, dict[str, Any]]:
        """The test's name, and its parameters."""
        name, _, parameter = self.test.rstrip("]").partition("[")
        which = {"test_equals_single": "kind", "test_refuses": "feature"}.get(name, "which")
        return name, {which: parameter} if parameter else {}

    def plan(self, folder: Path) -> Plan:
        """Its runs."""
        claims = {"strategy": "replica", "processes": (2,), "options": {"fault": self.fault}, **self.claims}
        contract = type("TestMutant", (StrategyContract,), claims)
        return Plan(Spec.of(contract), folder / self.name, folder / "single")


class Trial:
    """The runs of all mutants.

    Args:
        mutants: to try.
        folder: of their runs.
    """

    def __init__(self, mutants: list[Mutant], folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join(filter(None, (str(MUTANTS), os.environ.get("PYTHONPATH"))))
        runs = Runs(folder, {"PYTHONPATH": path})
        wanted = []
        for mutant in mutants:
            plan, (name, parameters) = mutant.plan(folder), mutant.method
            wanted += needed(getattr(StrategyContract, name).needs.runs(plan, **parameters), plan)
        unique = {scenario.folder: scenario for scenario in wanted}
        runs.run(in_order(unique.values()))
        self.outcomes: dict[str, Outcome] = runs.outcomes

    def message(self, mutant: Mutant) -> str:
        """What the test says that is to find it; "" where it finds nothing."""
        plan, (name, parameters) = mutant.plan(self.folder), mutant.method
        test = getattr(StrategyContract, name)
        wanted = test.needs.runs(plan, **parameters)
        contract = Contract(plan.spec, plan, [self.outcomes[scenario.folder] for scenario in wanted])
        try:
            test(None, contract, **parameters)
        except pytest.fail.Exception as failure:
            return str(failure)
        return ""
