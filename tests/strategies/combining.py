"""Runs the cells of the table of combinations, one launch a strategy, and says what came of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from strategies.cells import BREAKS, name_of, reference, references, refusals, scenario_of
from strategies.comparing import TOLERANCE, of_numbers, of_tensors
from strategies.configurations import CONFIGURATIONS
from strategies.covering import Row
from strategies.launching import PATIENCE, run_all
from strategies.scenario import Outcome, Scenario

OPTIMIZERS = {
    "adamw_torch": "AdamW",
    "sgd": "SGD",
    "adafactor": "Adafactor",
    "muon": "MuonWithAdamW",
    "adamw_torch_fused": "AdamW",
    "adamw_hf": "AdamW",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "lion": "Lion",
    "schedule_free_adamw": "AdamWScheduleFree",
    "adamw_bnb_8bit": "AdamW",
    "handed in": "NAdam",
}
"""The class that each is, inside whatever an engine wraps it in."""

BREAKING: Row = {
    "precision": "fp32",
    "accumulation": "3",
    "clipping": "on",
    "checkpointing": "off",
    "optimizer": "adamw_torch",
    "compile": "off",
}
"""The settings of the run in which a rank fails."""

LATE = 30.0
"""Seconds after which the others must have failed as well; `ddp_timeout` is four times as long."""


@dataclass
class Cell:
    """What came of a cell.

    Attributes:
        row: the values of its factors.
        difference: the largest relative difference of losses, norms and weights, where it trained.
        refused: the sentence that it was refused with, or "".
        wrong: sentences; one is a failure.
    """

    row: Row
    difference: float = 0.0
    refused: str = ""
    wrong: list[str] = field(default_factory=list)


@dataclass
class Combinations:
    """Cells, their runs, and what came of the comparison.

    Attributes:
        out: the folder of all runs.
        console: where progress is told.
        patience: seconds without any run ending after which a launch counts as hung.
    """

    out: Path
    console: Console
    patience: float = PATIENCE
    cells: dict[str, Cell] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)
    runs: int = 0
    launches: list[str] = field(default_factory=list)
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _references: dict[str, Outcome] = field(default_factory=dict)

    def run(self, cells: list[Row], breaks: bool = True) -> None:
        """Runs cells, each strategy's in one launch, whose last run is one in which a rank fails."""
        self._run([scenario_of(cell) for cell in references(cells)], None)
        for name, outcome in self._outcomes.items():
            self._references[name] = outcome
        for name in dict.fromkeys(cell["strategy"] for cell in cells):
            mine = [cell for cell in cells if cell["strategy"] == name]
            scenarios = [scenario_of(cell) for cell in mine if name_of(cell) not in self._references]
            if breaks and scenarios and scenarios[0].world > 1:
                scenarios.append(scenario_of({**BREAKING, "strategy": name}, breaks=True))
            self._run(scenarios, name)
            for cell in mine:
                self.cells[name_of(cell)] = self._judged(cell)

    @property
    def failures(self) -> list[str]:
        """A sentence for each."""
        found = [f"{name}: {'; '.join(cell.wrong)}" for name, cell in self.cells.items() if cell.wrong]
        found += [
            f"{name}, where a rank fails: {'; '.join(wrong)}" for name, wrong in self.broken.items() if wrong
        ]
        return found

    def _run(self, scenarios: list[Scenario], name: str | None) -> None:
        if not scenarios:
            return
        what = name or "what they are compared with"
        self.console.print(f"{what}: {len(scenarios)} runs", highlight=False)
        begun = time.monotonic()
        self._outcomes |= run_all(scenarios, self.out, self._told, self.patience)
        self.runs += len(scenarios)
        self.launches.append(f"{len(scenarios)} runs of {what} in {time.monotonic() - begun:.0f} s")

    def _told(self, scenario: Scenario, outcome: Outcome) -> None:
        self._outcomes[scenario.name] = outcome
        seconds = max((rank["seconds"] for rank in outcome.ranks), default=0.0)
        what = ""
        if scenario.breaks:
            self.broken[scenario.configuration] = problems = broken(outcome)
            what = "FAILED: " + problems[0] if problems else "fails as it must"
        elif scenario.name in self._references or self._references:
            cell = self._judged(scenario.cell)
            what = "FAILED: " + cell.wrong[0] if cell.wrong else cell.refused or f"{cell.difference:.1e}"
        self.console.print(f"  {scenario.name:<64} {seconds:5.1f} s  {what}", highlight=False, markup=False)

    def _judged(self, row: Row) -> Cell:
        outcome = self._outcomes[name_of(row)]
        cell = Cell(row)
        if outcome.trouble:
            cell.wrong.append(outcome.trouble)
        elif refusals(row):
            cell.refused = outcome.ranks[0]["error"].removeprefix("ConfigurationError: ")
        else:
            self._compare(cell, outcome)
        return cell

    def _compare(self, cell: Cell, outcome: Outcome) -> None:
        row, wrong = cell.row, cell.wrong
        plain = reference(row)
        wanted = self._references[name_of(plain)]
        twin = self._references[name_of(plain | {"precision": "fp32"})]
        if wanted.trouble or twin.trouble:
            wrong.append(f"what it is compared with failed: {wanted.trouble or twin.trouble}")
            return
        cell.difference, sentences = apart(outcome, wanted)
        wrong += sentences
        # Muon orthogonalises its updates in bf16, whatever the weights are.
        half = row["precision"] == "bf16"
        tolerance = TOLERANCE["bf16" if half or row["optimizer"] == "muon" else "fp32"]
        if not cell.difference <= tolerance:  # and not a number is beyond it too
            wrong.append(f"differs by {cell.difference:.1e}")
        if half and not apart(outcome, twin)[0] > TOLERANCE["fp32"]:
            wrong.append("bf16 gives what fp32 gives")
        wrong += untrue(row, outcome)


def losses_of(outcome: Outcome) -> list[float]:
    """Each micro-batch's loss, of all ranks."""
    return [sum(each) / len(each) for each in zip(*(rank["losses"] for rank in outcome.ranks), strict=True)]


def apart(found: Outcome, wanted: Outcome) -> tuple[float, list[str]]:
    """The largest relative difference of two runs, and what is wrong besides."""
    one, other = found.ranks[0], wanted.ranks[0]
    wrong: list[str] = []
    differences = [
        of_numbers(losses_of(found), losses_of(wanted)),
        of_numbers([one["training_loss"]], [other["training_loss"]]),
    ]
    if None not in other["norms"]:  # without clipping, an engine may tell it all the same
        differences.append(of_numbers([norm or 0.0 for norm in one["norms"]], other["norms"]))
    if of_numbers(one["rates"], other["rates"]) > 1e-9:
        wrong.append("other learning rates")
    weights, expected = found.tensors["weights"], wanted.tensors["weights"]
    if list(weights) != list(expected):
        wrong.append("other names of weights")
    else:
        differences += [of_tensors(weights[name], expected[name]) for name in weights]
    if any(rank["digest"] != one["digest"] for rank in found.ranks):
        wrong.append("the ranks have other weights after it")
    largest = max(differences)
    return (largest if largest == largest else float("inf")), wrong


def untrue(row: Row, outcome: Outcome) -> list[str]:
    """What was asked for and was not there: engine, precision, optimizer, compiled code, recomputation."""
    configuration = CONFIGURATIONS[row["strategy"]]
    wrong: list[str] = []
    for rank in outcome.ranks:
        expected = {
            "strategy": configuration.strategy,
            "engine": configuration.engine,
            "precision": row["precision"],
            "optimizer": OPTIMIZERS[row["optimizer"]],
            "left": 0,  # in the model that comes back
            "recomputed": 2 if row["checkpointing"] == "on" else 0,
        }
        for key, value in expected.items():
            if rank[key] != value:
                wrong.append(f"rank {rank['rank']}: {key} is {rank[key]!r}, not {value!r}")
        if (rank["graphs"] > 0) != (row["compile"] != "off"):
            wrong.append(f"rank {rank['rank']}: {rank['graphs']} graphs were compiled")
    return wrong


def broken(outcome: Outcome) -> list[str]:
    """What is not as it must be where rank 1 fails: it speaks first, and the other names it, soon."""
    reports = {rank["rank"]: rank for rank in outcome.ranks}
    if set(reports) != {0, 1}:
        return [outcome.trouble]
    first, second = reports[1], reports[0]
    wrong = []
    if first["error"] != f"ValueError: {BREAKS}":
        wrong.append(f"rank 1 says {first['error']!r}")
    sentence = f"ProcessError: Another process of this run has failed: rank 1 by ValueError: {BREAKS}"
    if second["error"] != sentence:
        wrong.append(f"rank 0 says {second['error']!r}")
    if not wrong and not 0 <= second["failed_at"] - first["failed_at"] < LATE:
        wrong.append(f"rank 0 failed {second['failed_at'] - first['failed_at']:.1f} s after rank 1")
    return wrong
