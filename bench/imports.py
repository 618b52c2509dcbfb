"""How long it takes to import drivetrain and to list its plugins, against the least that each needs.

    python bench/imports.py [--rounds 15] [--json OUT]

Every sample is a fresh process; the two sides of a ratio take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

CLI = "import sys; sys.argv = ['drivetrain', {words}]; from drivetrain.cli import main; main()"


@dataclass(frozen=True)
class Comparison:
    """Two programs, and how many times the second's duration the first may take."""

    name: str
    ours: str
    base: str
    target: float


COMPARISONS = (
    Comparison(
        "from drivetrain import Trainer, TrainingArguments",
        "from drivetrain import Trainer, TrainingArguments",
        "import torch",
        1.25,
    ),
    Comparison("drivetrain plugins list", CLI.format(words="'plugins', 'list'"), "import typer, rich", 3.0),
    Comparison("drivetrain --help", CLI.format(words="'--help'"), "import typer, rich", 3.0),
)


def seconds(program: str) -> float:
    """Duration of one fresh interpreter that runs `program`. Raises CalledProcessError where it fails."""
    # With byte code, as an installed package has it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    out, missed = {}, False
    for comparison in COMPARISONS:
        seconds(comparison.ours), seconds(comparison.base)  # byte code and the disk's cache
        ours, base = [], []
        for _ in range(options.rounds):
            ours.append(seconds(comparison.ours))
            base.append(seconds(comparison.base))
        ratio = statistics.median(ours) / statistics.median(base)
        missed |= ratio > comparison.target
        word = "met" if ratio <= comparison.target else "MISSED"
        print(f"{comparison.name}: {statistics.median(ours):.3f} s")
        print(f"    {comparison.base}: {statistics.median(base):.3f} s")
        print(f"    ratio {ratio:.2f}, target at most {comparison.target:.2f}: {word}")
        out[comparison.name] = {"seconds": ours, "base": base, "ratio": ratio, "target": comparison.target}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(out, file, indent=1)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
