"""Microseconds a step of drivetrain, of loops written by hand and of other engines, side by side.

    python bench/overhead.py                                     # everything that is installed
    python bench/overhead.py --engines hand,hand-fused,drivetrain --data rows,list --rounds 21 --json out.json

Every round runs each engine once, in a new order, in this one process; what is printed is the median over rounds, and the median
and the quartiles of the ratio to the loop by hand *of the same round*, so that a machine whose speed drifts does no harm.
Processor time stands beside wall time: on a busy machine it is the steadier of the two.
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
from typing import Any

import torch
from engines import ENGINES, PACKAGES, quiet
from workload import Clock, Workload, workloads

# Of the issue that asked for this benchmark: the trainer against the loop by hand, and against the same with fused AdamW.
TARGETS = {"hand": 0.80, "hand-fused": 0.98}
BAR_MAY_COST = 1.02


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Sends standard output and error to nowhere: engines print their logs, and that is part of the work, but not of the table."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def one(engine: str, workload: Workload, steps: int) -> tuple[float, float]:
    """Microseconds a step (wall, processor) of one run."""
    torch.manual_seed(1)
    clock = Clock(steps)
    gc.collect()
    with silence():
        ENGINES[engine](workload, clock)
    return clock.microseconds()


def installed(names: list[str], workload: Workload) -> list[str]:
    """The engines that run here; each of the others is named with its reason."""
    able = []
    for name in names:
        try:
            one(name, workload, 5)
        except ImportError as problem:
            print(f"skipped {name}: {problem}")
        else:
            able.append(name)
    return able


def measure(
    names: list[str], workload: Workload, steps: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    order, results = list(names), {name: [] for name in names}
    shuffler = random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            results[name].append(one(name, workload, steps))
    return results


def summary(results: dict[str, list[tuple[float, float]]], base: str) -> dict[str, dict[str, float]]:
    """Medians, and ratios to `base` round by round (median, lower and upper quartile)."""
    table = {}
    for name, times in results.items():
        wall, cpu = zip(*times, strict=True)
        row = {"wall_us": statistics.median(wall), "cpu_us": statistics.median(cpu)}
        if base in results:
            for kind, index in (("wall", 0), ("cpu", 1)):
                ratios = sorted(
                    mine[index] / other[index] for mine, other in zip(times, results[base], strict=True)
                )
                row[f"{kind}_ratio"] = statistics.median(ratios)
                row[f"{kind}_low"], row[f"{kind}_high"] = (
                    ratios[len(ratios) // 4],
                    ratios[(3 * len(ratios)) // 4],
                )
        table[name] = row
    return table


def show(title: str, results: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    table = summary(results, "hand")
    fused = summary(results, "hand-fused")
    print(f"\n{title}")
    print(
        f"{'engine':16}{'µs a step':>10}{'to hand':>9}{'quartiles':>14}{'to fused':>10}{'cpu µs':>9}{'cpu to hand':>13}{'to fused':>10}"
    )
    for name, row in sorted(table.items(), key=lambda item: item[1]["wall_us"]):
        spread = f"{row['wall_low']:.2f} to {row['wall_high']:.2f}" if "wall_low" in row else ""
        cells = [
            row.get("wall_ratio"),
            fused[name].get("wall_ratio"),
            row.get("cpu_ratio"),
            fused[name].get("cpu_ratio"),
        ]
        hand, to_fused, cpu, cpu_fused = ("" if cell is None else f"{cell:.3f}" for cell in cells)
        print(
            f"{name:16}{row['wall_us']:10.1f}{hand:>9}{spread:>14}{to_fused:>10}{row['cpu_us']:9.1f}{cpu:>13}{cpu_fused:>10}"
        )
    verdicts = {}
    for base, against in (("hand", table), ("hand-fused", fused)):
        ratio = against.get("drivetrain", {}).get("wall_ratio")
        if ratio is not None:
            verdicts[base] = ratio <= TARGETS[base]
            word = "met" if verdicts[base] else "MISSED"
            print(f"target: drivetrain at most {TARGETS[base]:.2f} of {base}: {ratio:.3f}, {word}")
    if {"drivetrain", "drivetrain-bar"} <= results.keys():
        ratio = summary(results, "drivetrain")["drivetrain-bar"]["wall_ratio"]
        verdicts["bar"] = ratio <= BAR_MAY_COST
        print(
            f"target: the bar costs at most 2 %: {(ratio - 1) * 100:+.1f} %, {'met' if verdicts['bar'] else 'MISSED'}"
        )
    return {"engines": table, "to_fused": fused, "targets_met": verdicts}


def versions(names: list[str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in names:
        package = PACKAGES.get(name, name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help="names, separated by commas")
    parser.add_argument(
        "--data", default="rows", help="rows, list, pairs, batches, separated by commas; or all"
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps that are timed, in each round")
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
    torch.set_num_threads(options.threads)
    quiet()
    names = installed(names, data[kinds[0]])
    out: dict[str, Any] = {
        "versions": versions(names),
        "steps": options.steps,
        "rounds": options.rounds,
        "data": {},
    }
    print(", ".join(f"{name} {version}" for name, version in out["versions"].items()))
    for kind in kinds:
        results = measure(names, data[kind], options.steps, options.rounds)
        out["data"][kind] = show(f"data: {kind}", results) | {"rounds": results}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(out, file, indent=1)
    missed = any(not met for part in out["data"].values() for met in part["targets_met"].values())
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
