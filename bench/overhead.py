"""Microseconds a step of drivetrain, of loops written by hand and of other engines, side by side.

    python bench/overhead.py                                     # everything that is installed
    python bench/overhead.py --engines hand,hand-fused,drivetrain --data all --rounds 21 --json out.json

Every round runs each engine once, in a new order, in this one process. Two figures stand for an engine:

- wall time: the median over rounds, and the ratio to the loop by hand *of the same round* (median and quartiles),
  so that a machine whose speed drifts does no harm;
- quiet: processor time in the lowest decile of all windows of 250 steps (an epoch each). It is what the code
  costs where nothing disturbs it, and the figure to trust on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from engines import ENGINES, PACKAGES, quiet
from workload import WINDOW, Clock, Workload, workloads

# drivetrain against the loop by hand, against the same with fused AdamW, and what its progress bar may add.
TARGETS = {"hand": 0.80, "hand-fused": 0.98}
BAR_MAY_COST = 1.02

Windows: TypeAlias = list[tuple[float, float]]
"""(wall, processor) microseconds a step, one pair a window."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Standard output and error go nowhere: engines print their logs, and that is work, but not for the table."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def one(engine: str, workload: Workload, windows: int) -> Windows:
    """The windows of one run."""
    torch.manual_seed(1)
    clock = Clock(windows)
    gc.collect()
    with silence():
        ENGINES[engine](workload, clock)
    return clock.windows


def installed(names: list[str], workload: Workload) -> list[str]:
    """The engines that run here; each of the others is named with its reason."""
    able = []
    for name in names:
        try:
            one(name, workload, 1)
        except ImportError as problem:
            print(f"skipped {name}: {problem}")
        else:
            able.append(name)
    return able


def measure(names: list[str], workload: Workload, windows: int, rounds: int) -> dict[str, list[Windows]]:
    """For each engine its rounds."""
    order, results = list(names), {name: [] for name in names}
    shuffler = random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            results[name].append(one(name, workload, windows))
    return results


class Figures:
    """What is said of one engine.

    Attributes:
        walls: wall microseconds a step, of each round.
        wall: their median.
        quiet: processor microseconds a step, in the lowest decile of windows.
    """

    def __init__(self, rounds: list[Windows]) -> None:
        self.walls = [statistics.fmean(wall for wall, _ in windows) for windows in rounds]
        self.wall = statistics.median(self.walls)
        cpu = sorted(cpu for windows in rounds for _, cpu in windows)
        self.quiet = cpu[len(cpu) // 10]

    def against(self, base: Figures) -> dict[str, float]:
        """Ratios to another engine."""
        ratios = sorted(mine / other for mine, other in zip(self.walls, base.walls, strict=True))
        last = len(ratios) - 1
        return {
            "wall": statistics.median(ratios),
            "low": ratios[round(last / 4)],
            "high": ratios[round(last * 3 / 4)],
            "quiet": self.quiet / base.quiet,
        }


def show(title: str, results: dict[str, list[Windows]]) -> dict[str, Any]:
    """Prints the table and the targets of one kind of data; returns what it printed."""
    figures = {name: Figures(rounds) for name, rounds in results.items()}
    bases = [base for base in TARGETS if base in figures]
    print(f"\n{title}\n{'':16}{'wall µs':>9}", end="")
    print("".join(f"{'to ' + base:>15}{'(quartiles)':>14}" for base in bases), end="")
    print(f"{'quiet µs':>11}" + "".join(f"{'to ' + base:>15}" for base in bases))
    out: dict[str, Any] = {}
    for name, mine in sorted(figures.items(), key=lambda item: item[1].quiet):
        ratios = {base: mine.against(figures[base]) for base in bases}
        out[name] = {"wall_us": mine.wall, "quiet_us": mine.quiet, "to": ratios}
        spreads = "".join(f"{r['wall']:15.3f}{r['low']:8.2f}-{r['high']:.2f} " for r in ratios.values())
        quiets = "".join(f"{r['quiet']:15.3f}" for r in ratios.values())
        print(f"{name:16}{mine.wall:9.1f}{spreads}{mine.quiet:11.1f}{quiets}")
    targets = [("drivetrain", base, TARGETS[base]) for base in bases]
    targets.append(("drivetrain-bar", "drivetrain", BAR_MAY_COST))
    met: dict[str, bool] = {}
    for name, base, target in targets:
        if name in figures and base in figures:
            ratio = figures[name].against(figures[base])
            met[f"{name} to {base}"] = ok = ratio["quiet"] <= target
            word = "met" if ok else "MISSED"
            print(
                f"target {word}: {name} at most {target:.2f} of {base}; "
                f"quiet {ratio['quiet']:.3f}, wall {ratio['wall']:.3f}"
            )
    return {"engines": out, "targets_met": met}


def versions(names: list[str]) -> dict[str, str]:
    """Of Python, torch and the engines' packages."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in names:
        package = PACKAGES.get(name, name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main(arguments: list[str]) -> int:
    """The program; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help="names, separated by commas")
    parser.add_argument("--data", default="rows", help="rows, list, pairs, batches, by commas; or all")
    parser.add_argument("--steps", type=int, default=750, help=f"timed in each round, in windows of {WINDOW}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", metavar="OUT", help="also write the figures, round by round, to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    names, data = options.engines.split(","), workloads()
    kinds = list(data) if options.data == "all" else options.data.split(",")
    for word, known in [(name, ENGINES) for name in names] + [(kind, data) for kind in kinds]:
        if word not in known:
            parser.error(f"unknown: {word}. Known: {', '.join(known)}")
    windows = max(options.steps // WINDOW, 1)
    torch.set_num_threads(options.threads)
    quiet()
    names = installed(names, data[kinds[0]])
    out: dict[str, Any] = {"versions": versions(names), "rounds": options.rounds, "data": {}}
    print(", ".join(f"{name} {version}" for name, version in out["versions"].items()))
    for kind in kinds:
        results = measure(names, data[kind], windows, options.rounds)
        out["data"][kind] = show(f"data: {kind}", results) | {"windows": results}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(out, file, indent=1)
    missed = any(not met for part in out["data"].values() for met in part["targets_met"].values())
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
