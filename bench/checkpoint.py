"""What a checkpoint costs: the stall of a step, the speed of writing, and the time to the first step of a resume.

    python bench/checkpoint.py                                   # everything; needs 10 GB of memory and 4 GB of disk
    python bench/checkpoint.py --parts save --savers drivetrain,drivetrain-async,torch --rounds 5 --json out.json

**Saving.** A model of 42 million parameters is trained with AdamW, so that a checkpoint is about 500 MB, and saved
every few steps, by each saver in turn, in a new order every round. A step is timed from forward pass to forward pass;
the *stall* is what a step with a save takes beyond the median of the steps before the first save. A saver's first save
of each round is told apart: buffers are made then, and files. `torch` writes model, optimizer and schedule with
`torch.save`, `torch-fsync` syncs the file to the disk as well, which drivetrain does for files and folder. *MB/s* is
the size of what was written by the stall, to be held against `dd ... conv=fsync` of as many bytes into the same folder
in the same round. *Slower* is what the steps without a save take after the first one, by those before it.

**Resuming.** A run over 1.1 million rows that came to row 10, 10,000 or 1,000,000 goes on: seconds from `train()` to
the first forward pass, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SAVERS = ("torch", "torch-fsync", "drivetrain", "drivetrain-async", "accelerate", "lightning")
RESUMERS = ("drivetrain", "transformers")
ROWS = (10, 10_000, 1_000_000)
STALL, THROUGHPUT = 0.15, 0.8  # async to torch.save at most; sync to dd at least


def dd(folder: Path, megabytes: int) -> float:
    """Megabytes (10^6 bytes) a second of dd, synced, of bytes that lie in memory."""
    import time

    block = 1_000_000
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as source:
        source.write(os.urandom(block) * megabytes)
        source.flush()
        out = folder / "dd"
        began = time.perf_counter()
        subprocess.run(
            ["dd", f"if={source.name}", f"of={out}", "bs=8M", "conv=fsync"], check=True, capture_output=True
        )
        seconds = time.perf_counter() - began
        out.unlink()
    return megabytes / seconds


def saving(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the savers in turn, in this process."""
    from checkpoint_savers import SAVE, Missing, Plan, folder_size

    plan = Plan(options.layers, options.saves, options.every)
    found: dict[str, Any] = {"savers": {}, "reasons": {}, "dd": []}
    names, draw = list(options.savers), random.Random(0)
    for _ in range(options.rounds):
        draw.shuffle(names)
        for name in list(names):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                try:
                    timeline = SAVE[name](plan, Path(folder))
                except (ImportError, Missing) as problem:
                    found["reasons"][name] = str(problem)
                    names.remove(name)
                    continue
                entry = found["savers"].setdefault(
                    name, {"first": [], "later": [], "writing": [], "base": []}
                )
                stalls = timeline.stalls()
                entry["first"].append(stalls[0])
                entry["later"].extend(stalls[1:])
                entry["writing"].append(timeline.between())
                entry["base"].append(timeline.base())
                entry["megabytes"] = folder_size(Path(folder)) / 1e6
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            size = max(entry["megabytes"] for entry in found["savers"].values())
            found["dd"].append(dd(Path(folder), round(size)))
    return found


def resuming(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first forward pass, by engine and row."""
    found: dict[str, Any] = {"seconds": {}, "reasons": {}}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        jobs = [(engine, row) for engine in options.resumers for row in options.rows]
        for engine, row in jobs:
            done = _resumer("make", engine, row, folder)
            if done.returncode:
                found["reasons"][engine] = done.stderr.strip().splitlines()[-1]
        jobs = [(engine, row) for engine, row in jobs if engine not in found["reasons"]]
        for _ in range(options.rounds):
            random.shuffle(jobs)
            for engine, row in jobs:
                done = _resumer("go", engine, row, folder)
                if done.returncode:
                    raise SystemExit(f"{engine} did not go on from row {row}:\n{done.stderr[-3000:]}")
                told = json.loads(done.stdout.splitlines()[-1])
                of_engine = found["seconds"].setdefault(engine, {})
                of_engine.setdefault(str(row), []).append(told["seconds"])
    return found


def _resumer(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "checkpoint_resumers.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def show_saving(found: dict[str, Any]) -> dict[str, bool]:
    """The table, and which targets were met."""
    savers, medians = found["savers"], {}
    speed = statistics.median(found["dd"])
    print(f"\nload {os.getloadavg()[0]:.1f}; step {_ms(savers, 'base'):.0f} ms; dd {speed:.0f} MB/s")
    heads = f"{'saver':18}{'MB':>6}{'first, s':>10}{'later, s':>10}{'(quartiles)':>14}"
    print(f"{heads}{'to torch':>10}{'MB/s':>7}{'slower':>8}")
    for name, entry in savers.items():
        medians[name] = statistics.median(entry["later"])
    for name, entry in savers.items():
        ordered = sorted(entry["later"])
        low, high = ordered[round((len(ordered) - 1) / 4)], ordered[round((len(ordered) - 1) * 3 / 4)]
        to_torch = f"{medians[name] / medians['torch']:10.3f}" if "torch" in medians else " " * 10
        speed = entry["megabytes"] / medians[name] if not name.endswith("async") else float("nan")
        print(
            f"{name:18}{entry['megabytes']:6.0f}{statistics.median(entry['first']):10.3f}{medians[name]:10.3f}"
            f"{f'{low:.2f}-{high:.2f}':>14}{to_torch}{speed:7.0f}{statistics.median(entry['writing']):8.2f}"
        )
    for name, reason in found["reasons"].items():
        print(f"{name:18}not here: {reason}")
    met: dict[str, bool] = {}
    if {"torch", "drivetrain-async"} <= medians.keys():
        met["stall"] = medians["drivetrain-async"] <= STALL * medians["torch"]
    if "drivetrain" in medians:
        speed = savers["drivetrain"]["megabytes"] / medians["drivetrain"]
        met["throughput"] = speed >= THROUGHPUT * statistics.median(found["dd"])
    print(
        f"targets: async stall at most {STALL} of torch.save, sync at least {THROUGHPUT} of dd: {_words(met)}"
    )
    return met


def show_resuming(found: dict[str, Any]) -> None:
    print(f"\nresume at row     {''.join(f'{row:>22,}' for row in ROWS)}")
    for engine, by_row in found["seconds"].items():
        cells = []
        for row in ROWS:
            seconds = by_row.get(str(row))
            cell = (
                f"{statistics.median(seconds):.3f} s ({min(seconds):.2f}-{max(seconds):.2f})"
                if seconds
                else ""
            )
            cells.append(f"{cell:>22}")
        print(f"{engine:18}{''.join(cells)}")
    for engine, reason in found["reasons"].items():
        print(f"{engine:18}not here: {reason}")


def _ms(savers: dict[str, Any], key: str) -> float:
    return statistics.median([value for entry in savers.values() for value in entry[key]]) * 1e3


def _words(met: dict[str, bool]) -> str:
    return ", ".join(f"{name} {'met' if fine else 'MISSED'}" for name, fine in met.items()) or "not measured"


def main(arguments: list[str]) -> int:
    """The program; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="save,resume")
    parser.add_argument("--savers", default=",".join(SAVERS), help="names, separated by commas")
    parser.add_argument("--resumers", default=",".join(RESUMERS), help="names, separated by commas")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="where runs go on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=40, help="of the model, a million parameters each")
    parser.add_argument("--saves", type=int, default=4, help="of a saver and round")
    parser.add_argument("--every", type=int, default=12, help="steps between two saves")
    parser.add_argument("--folder", help="where checkpoints are written; by default the temporary folder")
    parser.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    for kind, known in (("parts", ("save", "resume")), ("savers", SAVERS), ("resumers", RESUMERS)):
        words = getattr(options, kind).split(",")
        setattr(options, kind, words)
        for word in words:
            if word not in known:
                parser.error(f"unknown: {word}. Known: {', '.join(known)}")
    options.rows = [int(row) for row in options.rows.split(",")]
    warnings.simplefilter("ignore")
    out: dict[str, Any] = {}
    met: dict[str, bool] = {}
    if "save" in options.parts:
        out["save"] = saving(options)
        met = show_saving(out["save"])
        sys.stdout.flush()
    if "resume" in options.parts:
        out["resume"] = resuming(options)
        show_resuming(out["resume"])
    if options.json:
        Path(options.json).write_text(json.dumps(out, indent=1))
    return 1 if options.check and not all(met.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
