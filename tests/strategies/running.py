"""Every strategy against one process, every checkpoint under another, every setting with each other.

`python tests/strategies/running.py`: the real engines, in launches of torchrun. Prints what each engine holds, how far
each run is from that of one process, which checkpoints went on where, and what goes with what; ends with 1 where one
of them failed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from strategies.cells import all_cells
from strategies.combinations_page import grids as grids_of_combinations
from strategies.combinations_page import page as page_of_combinations
from strategies.combining import Combinations
from strategies.comparing import TOLERANCE, Difference, compare, compare_checkpoints
from strategies.configurations import CONFIGURATIONS, Configuration, lacking
from strategies.launching import PATIENCE, run_all
from strategies.planning import (
    DIRECT,
    KINDS,
    STUBBORN,
    VARIANTS,
    Hop,
    canonical_hops,
    elastic,
    elastic_name,
    every_hop,
    stubborn,
    variant,
    variants,
    whole,
)
from strategies.scenario import ROWS_AN_UPDATE, Outcome, Scenario
from strategies.tables import Grid, markdown, show

WORLDS = (1, 2, 4)

PARTS = ("strategies", "combinations")

PAGE = """# What holds, in numbers

Every strategy's real engine is run against one process, on a small model like a transformer, on CPUs: a tied weight, a
frozen parameter, a buffer, layers of 5 and of 7 rows, 51 rows that fit no batch, and an accumulation with a micro-batch
left over at the end of an epoch. Updates are AdamW's, with decay, a schedule, and gradients that are clipped where they
are too long. This page is what the command prints:

```sh
{command}
```

A **difference** of numbers is relative. That of a tensor is its largest element's difference by the reference's largest
element: of an element near zero a relative difference says nothing. Compared are the loss of every micro-batch, the
gradient's norm at every update, the log, the metrics of evaluations, predictions row by row, final weights, and of the
checkpoints the optimizer's state by parameter name, its groups, the schedule, gradients carried along, and the place in
the data.

The **tolerance** is {fp32:.0e} in fp32. What is seen is some 1e-7, which is the rounding of fp32 when sums are taken in
another order; a mistake, such as a row counted twice or a gradient divided once too often, is 1e-3 and more. In bf16 the
tolerance is {bf16:.0e}, since bf16 has no more than three digits.

The rows of an update are the same whatever the number of processes ([Strategies](index.md)), so nothing here is averaged
out, and nothing is left to chance.
"""


@dataclass
class Harness:
    """Scenarios, their outcomes, and what came of the comparison.

    Attributes:
        out: the folder of all runs.
        console: where progress is told.
        patience: seconds without any run ending after which a launch counts as hung.
    """

    out: Path
    console: Console
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    launches: list[str] = field(default_factory=list)
    patience: float = PATIENCE

    def run(self, scenarios: list[Scenario]) -> None:
        """Runs what has not been run, and compares each with the run of one process that it must equal."""
        new = [scenario for scenario in scenarios if scenario.name not in self.scenarios]
        self.scenarios |= {scenario.name: scenario for scenario in new}
        for world in sorted({scenario.world for scenario in new}):
            batch = [scenario for scenario in new if scenario.world == world]
            self.console.print(f"{world} processes, {len(batch)} runs", highlight=False)
            begun = time.monotonic()
            self.outcomes |= run_all(batch, self.out, self._told, self.patience)
            self.launches.append(f"{len(batch)} runs of {world} in {time.monotonic() - begun:.0f} s")

    def _told(self, scenario: Scenario, outcome: Outcome) -> None:
        self.outcomes[scenario.name] = outcome
        difference = self.differences[scenario.name] = self._compared(scenario, outcome)
        self._hold(scenario, outcome, difference)
        seconds = max((rank["seconds"] for rank in outcome.ranks), default=0.0)
        what = f"{difference.largest:.1e}" if not difference.wrong else "FAILED: " + difference.wrong[0]
        self.console.print(f"  {scenario.name:<58} {seconds:5.1f} s  {what}", highlight=False, markup=False)

    def _compared(self, scenario: Scenario, outcome: Outcome) -> Difference:
        if scenario.fails:
            return Difference(wrong=[outcome.trouble] if outcome.trouble else [])
        kind = next((k for k in (*VARIANTS, *STUBBORN) if scenario.name.endswith(f"-{k}")), "whole")
        wanted = self.outcomes.get(variant(kind, "single", 1))
        if wanted is None:
            return Difference(wrong=[f"there is no run of one process to compare {scenario.name} with"])
        # Muon orthogonalises its updates in bf16, whatever the weights are.
        tolerance = TOLERANCE["bf16" if kind in ("bf16", "muon") else "fp32"]
        difference = compare(scenario, outcome, wanted, tolerance)
        if not difference.wrong and scenario.name == whole(scenario.configuration, scenario.world):
            for step in KINDS.values():
                files = [folder / f"checkpoint-{step}" for folder in (outcome.folder, wanted.folder)]
                compare_checkpoints(difference, *files)
            difference.check(tolerance)
        return difference

    def _hold(self, scenario: Scenario, outcome: Outcome, difference: Difference) -> None:
        """The engine is the one that was asked for, and what it shards is sharded."""
        if scenario.fails or outcome.trouble:
            return
        configuration, first = CONFIGURATIONS[scenario.configuration], outcome.ranks[0]
        if first["strategy"] != configuration.strategy:
            difference.wrong.append(f"ran under {first['strategy']!r}, not {configuration.strategy!r}")
        if first["engine"] != configuration.engine:
            difference.wrong.append(f"the engine is {first['engine']}, not {configuration.engine}")
        reference = self.outcomes[variant("whole", "single", 1)]
        for what in ("parameters", "optimizer"):
            if scenario.settings or what not in reference.ranks[0]["elements"]:
                continue
            all_of_it = reference.ranks[0]["elements"][what]
            held = [rank["elements"][what] for rank in outcome.ranks]
            if sum(held) < all_of_it:
                difference.wrong.append(f"{sum(held)} elements of the {what} are held, of {all_of_it}")
            if (
                scenario.world > 1
                and what in configuration.shards
                and max(held) > 1.3 * all_of_it / scenario.world
            ):
                difference.wrong.append(f"a rank holds {max(held)} elements of the {what}, of {all_of_it}")

    @property
    def failures(self) -> list[str]:
        """A sentence for each."""
        return [f"{name}: {'; '.join(d.wrong)}" for name, d in self.differences.items() if d.wrong]


def strategies_grid(harness: Harness, configurations: list[Configuration]) -> Grid:
    """What each engine is and holds."""
    reference = harness.outcomes[whole("single", 1)].ranks[0]["elements"]
    rows = []
    for configuration in configurations:
        held: dict[str, list[str]] = {"parameters": [], "optimizer": []}
        engine = "?"
        for world in WORLDS:
            outcome = harness.outcomes.get(whole(configuration.name, world))
            ranks = [r for r in outcome.ranks if "elements" in r] if outcome is not None else []
            engine = ranks[0]["engine"] or "none" if ranks else engine
            for what, numbers in held.items():
                numbers.append(str(max(r["elements"][what] for r in ranks)) if ranks else "-")
        rows.append([configuration.name, engine, *(" ".join(f"{n:>4}" for n in ns) for ns in held.values())])
    return Grid(
        "What each strategy holds",
        ["strategy", "engine", ">parameters", ">optimizer"],
        rows,
        f"Elements on the fullest rank of 1, 2 and 4 processes, between updates. The model has {reference['parameters']}, its AdamW "
        f"{reference['optimizer']}; what is more is padding.",
    )


def correctness_grid(harness: Harness, configurations: list[Configuration]) -> Grid:
    """How far each is from one process."""
    rows = [
        [c.name, *(_triple(harness, c.name, "whole", part) for part in ("losses", "weights", "optimizer"))]
        for c in configurations
    ]
    return Grid(
        "How far each run is from that of one process",
        ["strategy", ">losses", ">weights", ">optimizer"],
        rows,
        "Largest relative difference with 1, 2 and 4 processes; = is equal in every bit. AdamW, accumulation, "
        f"clipping, decay, fp32: it may be {TOLERANCE['fp32']:.0e}.",
    )


def variants_grid(harness: Harness, configurations: list[Configuration]) -> Grid:
    """The same with other settings, and the optimizers that not every strategy can run."""
    rows = [
        [
            c.name,
            _triple(harness, c.name, "plain", "weights"),
            _triple(harness, c.name, "bf16", "weights"),
            *(_stubborn(harness, c, name) for name in STUBBORN),
        ]
        for c in configurations
    ]
    return Grid(
        "Other settings",
        ["strategy", ">SGD", ">bf16", *STUBBORN],
        rows,
        "Weights again: SGD with no accumulation and no clipping, and bf16, where the difference may be "
        f"{TOLERANCE['bf16']:.0e}. Adafactor and Muon, whose state is not element by element, train (Muon "
        "in bf16, whatever the weights are) or are refused before the first step.",
    )


def _triple(harness: Harness, name: str, kind: str, part: str) -> str:
    cells = [_short(harness.differences.get(variant(kind, name, world)), part) for world in WORLDS]
    failed = any(cell.startswith("!") for cell in cells)
    return ("!" if failed else "") + " ".join(f"{cell.lstrip('!'):>4}" for cell in cells)


def _short(difference: Difference | None, part: str) -> str:
    if difference is None:
        return "-"
    return "!FAIL" if difference.wrong else _power(getattr(difference, part))


def _power(value: float) -> str:
    """In four characters."""
    return "=" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _worst(differences: list[Difference]) -> str:
    """Of several runs the one that is farthest off."""
    if not differences:
        return "-"
    failed = sum(bool(difference.wrong) for difference in differences)
    if failed:
        return f"!{failed} of {len(differences)} FAIL"
    return _power(max(difference.largest for difference in differences))


def _stubborn(harness: Harness, configuration: Configuration, name: str) -> str:
    found = [harness.differences.get(variant(name, configuration.name, w)) for w in WORLDS]
    there = [difference for difference in found if difference is not None]
    if any(difference.wrong for difference in there):
        return "!FAIL"
    if not there:
        return "-"
    return _worst(there) if name in configuration.moves else "refused"


def canonical_grid(harness: Harness, configurations: list[Configuration]) -> Grid:
    """Each writes the form, and each reads it."""

    def cell(configuration: Configuration, reads: bool, kind: str) -> str:
        found = []
        for world in configuration.worlds:
            ends = ("single", 1), (configuration.name, world)
            hop = Hop(*(ends[0] + ends[1] if reads else ends[1] + ends[0]), kind)
            found.append(harness.differences.get(hop.name))
        return _worst([difference for difference in found if difference is not None])

    rows = [
        [
            c.name,
            " ".join(map(str, c.worlds)),
            *(cell(c, reads, kind) for reads in (True, False) for kind in KINDS),
        ]
        for c in configurations
    ]
    return Grid(
        "Checkpoints, through the canonical form",
        ["strategy", ">ranks", ">reads mid", ">reads left", ">is read mid", ">is read left"],
        rows,
        "reads: goes on from what one process wrote; is read: one process goes on from what it wrote; from the midst "
        "of an epoch, and with a micro-batch left over. The largest difference of all from the run that never "
        "changed, optimizer state included.",
    )


def direct_grid(harness: Harness, hops: list[Hop]) -> Grid:
    """From one strategy to another."""
    rows = []
    for hop in hops:
        difference = harness.differences.get(hop.name)
        value = _short(difference, "largest")
        rows.append(
            [f"{hop.writer}@{hop.written_by}", f"{hop.reader}@{hop.read_by}", _spoken(hop.kind), value]
        )
    return Grid(
        "Checkpoints, from one strategy to another",
        ["written by", "read by", "checkpoint", ">largest difference"],
        rows,
        f"STRATEGY@PROCESSES. An update takes the same rows everywhere: {ROWS_AN_UPDATE} in each global batch, "
        "divided by the processes.",
    )


def elastic_grid(harness: Harness, configurations: list[Configuration]) -> Grid:
    """More processes or fewer, with the same arguments."""

    def cell(configuration: Configuration, read_by: int) -> str:
        names = [elastic_name(configuration.name, 2, read_by, kind) for kind in KINDS]
        return _worst([harness.differences[name] for name in names if name in harness.differences])

    return Grid(
        "Other numbers of processes, the same arguments",
        ["strategy", ">2 to 1", ">2 to 4"],
        [[c.name, cell(c, 1), cell(c, 4)] for c in configurations if 2 in c.worlds],
        "The checkpoint says what a global batch is; one process runs it in two micro-batches, four run smaller ones. "
        "What needs several processes goes on as single in one.",
    )


def _spoken(kind: str) -> str:
    return {"mid": "mid-epoch", "left": "left over"}[kind]


def long_form(harness: Harness, configurations: list[Configuration]) -> list[Grid]:
    """Correctness of each, the canonical form both ways, and sixteen direct hops."""
    by_world = {w: [c for c in configurations if w in c.worlds] for w in WORLDS}
    names = {configuration.name for configuration in configurations}
    hops = [hop for hop in DIRECT if {hop.writer, hop.reader} <= names]

    def begin(configuration: Configuration, world: int) -> list[Scenario]:
        reads = [h for h in canonical_hops(configuration, world) if h.reader == configuration.name]
        return [
            *variants(configuration, world, tuple(VARIANTS)),
            *(hop.scenario(harness.out) for hop in reads if hop.written_by == 1 and hop.writer == "single"),
            *(stubborn(configuration, world) if world < 4 else ()),
        ]

    for world in WORLDS:
        harness.run([s for configuration in by_world[world] for s in begin(configuration, world)])
    later = [
        hop.scenario(harness.out)
        for configuration in configurations
        for world in configuration.worlds
        for hop in canonical_hops(configuration, world)
    ]
    later += [hop.scenario(harness.out) for hop in hops]
    later += [
        elastic(configuration.name, 2, world, kind, harness.out)
        for configuration in by_world[2]
        for world in (1, 4)
        for kind in KINDS
    ]
    harness.run(later)
    return [
        strategies_grid(harness, configurations),
        correctness_grid(harness, configurations),
        variants_grid(harness, configurations),
        canonical_grid(harness, configurations),
        direct_grid(harness, hops),
        elastic_grid(harness, configurations),
    ]


def soak(harness: Harness, configurations: list[Configuration]) -> list[Grid]:
    """Every checkpoint under every strategy, with every number of processes."""
    for world in WORLDS:
        fitting = [c for c in configurations if world in c.worlds]
        harness.run([s for c in fitting for s in variants(c, world, ("whole",))])
    hops = every_hop(configurations)
    harness.run([hop.scenario(harness.out) for hop in hops])
    places = [(c.name, w) for c in configurations for w in c.worlds]
    rows = []
    for name, world in places:
        found = [harness.differences[h.name] for h in hops if (h.writer, h.written_by) == (name, world)]
        wrong = sum(bool(d.wrong) for d in found)
        largest = max(d.largest for d in found)
        rows.append([f"{name}@{world}", str(len(found)), f"!{wrong}" if wrong else "0", _power(largest)])
    return [
        Grid(
            "Every checkpoint under every strategy",
            ["written by", ">read by", ">failed", ">largest difference"],
            rows,
            "Each of the places (STRATEGY@PROCESSES) goes on from each, from two checkpoints.",
        )
    ]


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the tables here too, as Markdown")
    parser.add_argument("--combinations", type=Path, help="write that of combinations here, as Markdown")
    parser.add_argument("--part", choices=PARTS, help="the one half alone; both by default")
    parser.add_argument("--soak", action="store_true", help="every checkpoint under every strategy")
    parser.add_argument("--only", help="names of strategies, with commas; single is always there")
    parser.add_argument("--keep", type=Path, help="folder for the runs; a temporary one by default")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds until a launch counts as hung"
    )
    parser.add_argument("--width", type=int, help="columns to print in")
    chosen = parser.parse_args()
    console = Console(width=chosen.width)
    wanted = set(chosen.only.split(",")) | {"single"} if chosen.only else set(CONFIGURATIONS)
    if unknown := wanted - set(CONFIGURATIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CONFIGURATIONS)}")
    configurations = [c for name, c in CONFIGURATIONS.items() if name in wanted]
    missing = {c.name: reason for c in configurations if (reason := lacking(c))}
    configurations = [c for c in configurations if c.name not in missing]
    if chosen.keep:
        shutil.rmtree(chosen.keep, ignore_errors=True)
        chosen.keep.mkdir(parents=True)
    out = chosen.keep or Path(tempfile.mkdtemp(prefix="strategies-"))
    out = out.resolve()
    harness = Harness(out, console, patience=chosen.patience)
    combined = Combinations(out / "combinations", console, chosen.patience)
    begun, grids = time.monotonic(), []
    parts = (chosen.part,) if chosen.part else PARTS if not chosen.soak else PARTS[:1]
    try:
        if "strategies" in parts:
            grids += (soak if chosen.soak else long_form)(harness, configurations)
        if "combinations" in parts:
            combined.out.mkdir()
            combined.run(
                [cell for cell in all_cells() if cell["strategy"] in {c.name for c in configurations}]
            )
    finally:
        if not chosen.keep:
            shutil.rmtree(out, ignore_errors=True)
    console.print()
    for grid in [*grids, *(grids_of_combinations(combined) if combined.cells else [])]:
        show(grid, console)
    failures = (
        harness.failures + combined.failures + [f"{name}: {reason}" for name, reason in missing.items()]
    )
    summary = (
        f"{len(harness.scenarios) + combined.runs} runs, {len(failures)} failed, in "
        f"{(time.monotonic() - begun) / 60:.1f} minutes: {', '.join(harness.launches + combined.launches)}."
    )
    console.print(summary, highlight=False)
    for failure in failures:
        console.print(f"FAILED {failure}", style="red", highlight=False, markup=False)
    if chosen.combinations and combined.cells:
        chosen.combinations.write_text(page_of_combinations(combined))
    if chosen.out and grids:
        command = "nox -s strategies_soak" if chosen.soak else "nox -s strategies"
        page = PAGE.format(command=f"{command} -- --out docs/strategies/table.md", **TOLERANCE)
        chosen.out.write_text("\n".join([page, *map(markdown, grids)]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
