"""What an evaluation keeps: its peak of memory against what is kept, and its time against the number of rows.

    python bench/evaluation.py                                       # a million rows; needs 3 GB of memory
    python bench/evaluation.py --rows 10000,20000,40000 --engines drivetrain,transformers --json out.json

A model gives 100 numbers for each row, and predict() keeps them with the labels: 408 bytes a row. Each run is a process
of its own (or several, under torchrun), which evaluates a few rows first; then the peak of the resident memory is set
back, as Linux can, and read at the end. *Peak* is what it rose by, of the process that rose most, and *times kept* is
that by the bytes of the arrays that predict() gives back: 1 is the least that is possible. `drivetrain-fed` evaluates
with `batch_eval_metrics`, which keeps nothing. Microseconds a row are processor time, which other work on the machine
changes little. Rows are made as whole batches, so that the clock shows the evaluation
and not the data.

transformers puts the batches together again at each of them, so that a million rows take hours: it is run on those of
the numbers of rows that are at most 100,000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENGINES = ("drivetrain", "drivetrain-fed", "transformers")
MOST_FOR_TRANSFORMERS = 100_000
PEAK, LINEAR = (
    1.25,
    1.5,
)  # times kept at most; processor time a row at the most rows to that at the fewest, at most


def measured(engine: str, rows: int, processes: int, batch: int) -> dict[str, Any] | None:
    """One run in fresh processes; None where the engine is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        worker = [str(HERE / "evaluation_worker.py"), engine, str(rows), str(batch), str(out)]
        command = [sys.executable, *worker]
        if processes > 1:
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            command = [sys.executable, "-m", *launcher, *worker]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 2:
            return None
        if done.returncode != 0:
            raise SystemExit(f"{engine} with {rows} rows failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return {"engine": engine, "rows": rows, "processes": processes, **found}


def verdicts(runs: list[dict[str, Any]]) -> list[str]:
    """Which targets drivetrain misses."""
    missed = []
    for engine in ("drivetrain", "drivetrain-fed"):
        for processes in sorted({run["processes"] for run in runs}):
            own = [run for run in runs if (run["engine"], run["processes"]) == (engine, processes)]
            own.sort(key=lambda run: run["rows"])
            where = f"{engine}, {processes} process(es)"
            for run in own:
                if engine == "drivetrain" and run["rows"] >= 1_000_000 and run["times kept"] > PEAK:
                    missed.append(f"{where}, {run['rows']} rows: peak {run['times kept']:.2f} times kept")
            if len(own) > 1:
                growth = own[-1]["us a row"] / own[0]["us a row"]
                if growth > LINEAR:
                    missed.append(
                        f"{where}: a row takes {growth:.2f} times as much processor time with more rows"
                    )
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="100000,1000000", help="numbers of rows, by commas")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--processes", default="1,2", help="numbers of processes, by commas")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="a missed target is the exit code")
    options = parser.parse_args()
    runs = []
    names = ("processes", "rows", "seconds", "us a row", "kept MB", "peak MB")
    print(f"{'engine':16}", *(f"{name:>9}" for name in names), "times kept")
    for processes in map(int, options.processes.split(",")):
        for rows in map(int, options.rows.split(",")):
            for engine in options.engines.split(","):
                if engine == "transformers" and (rows > MOST_FOR_TRANSFORMERS or processes > 1):
                    continue
                run = measured(engine, rows, processes, options.batch)
                if run is None:
                    print(f"{engine:16} is not installed")
                    continue
                runs.append(run)
                times = f"{run['times kept']:.2f}" if run["times kept"] is not None else "-"
                figures = (f"{run[name]:>9.2f}" for name in names[2:])
                print(f"{engine:16} {processes:>9} {rows:>9}", *figures, times, flush=True)
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1))
    missed = verdicts(runs)
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
