"""What torch_compile, bf16, gradient_checkpointing and full_determinism cost and spare, beside transformers.

    python bench/options.py                                        # everything; some 4 GB of memory
    python bench/options.py --options plain,compile --rounds 9 --json out.json

A small GPT (that of the examples) is trained by drivetrain's Trainer and by transformers' with the same options. Each
trainer with each set of options is a process of its own, which compiles, warms up, and then waits; in every round each
of them in turn, in a new order, trains a window of steps while all others wait. Of wall and of processor time, which
other work on the machine disturbs less, the tables have the median of a step, the ratio to the same trainer without
options in the same round (median and quartiles), and drivetrain's ratio to transformers in the same round.

*Memory* is the highest resident set of the process while the windows were trained, above what it held before the model
was built: weights, gradients, optimizer, activations, and what a compiler leaves behind. *Warm* is the time of the
first steps, compilation included: each process has an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "options_worker.py"
TRAINERS = ("drivetrain", "transformers")
COMPILE, BF16 = {"torch_compile": True}, {"bf16": True}
CHECKPOINTING = {"gradient_checkpointing": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": BF16,
    "compile": COMPILE,
    "checkpointing": CHECKPOINTING,
    "bf16+compile": BF16 | COMPILE,
    "bf16+checkpointing": BF16 | CHECKPOINTING,
    "compile+checkpointing": COMPILE | CHECKPOINTING,
    "all three": BF16 | COMPILE | CHECKPOINTING,
    "full_determinism": {"full_determinism": True},
}
WORK = {
    "layers": 4, "heads": 6, "width": 192, "context": 128, "batch": 8, "threads": 1, "warm_up": 2, "window": 4,
}  # fmt: skip


class Failed(Exception):
    """A process that did not come to its end."""


class Worker:
    """One trainer with one set of options, warm.

    Args:
        trainer, options: names of `TRAINERS` and `OPTIONS`.
        folder: for its compiler's cache and its errors.
        minutes: after which it is ended.

    Raises:
        Failed: with the end of what it printed.
    """

    def __init__(
        self, trainer: str, options: str, work: dict[str, Any], folder: Path, minutes: float
    ) -> None:
        self.name, self.log = f"{trainer}, {options}", folder / "log"
        cache = folder / "cache"
        cache.mkdir(parents=True)
        threads = {"OMP_NUM_THREADS": str(work["threads"]), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        spec = {"trainer": trainer, "options": OPTIONS[options], "work": work}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={
                    **os.environ,
                    **threads,
                    "TORCHINDUCTOR_CACHE_DIR": str(cache),
                    "CUDA_VISIBLE_DEVICES": "",
                },
                start_new_session=True,
            )
        self.limit = threading.Timer(minutes * 60, self.kill)
        self.limit.daemon = True
        self.limit.start()
        first = self.hear()
        self.reason: str | None = first.get("reason")
        self.warm: float = first.get("warm", 0.0)
        self.rounds: list[dict[str, float]] = []

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.kill()
            raise Failed(f"{self.name} has ended, or was ended at its limit:\n{self.log.read_text()[-3000:]}")
        told: dict[str, Any] = json.loads(line)
        return told

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def train(self) -> None:
        """A window of steps."""
        self.tell("go")
        self.rounds.append(self.hear())

    def end(self) -> dict[str, Any]:
        """Ends the run; what it tells of itself."""
        self.tell("end")
        told = self.hear()
        self.process.wait()
        self.limit.cancel()
        return told

    def kill(self) -> None:
        self.limit.cancel()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def ratios(mine: list[float], base: list[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios of each round."""
    found = sorted(a / b for a, b in zip(mine, base, strict=True))
    last = len(found) - 1
    return {
        "median": statistics.median(found),
        "quartiles": [found[round(last / 4)], found[round(last * 3 / 4)]],
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every trainer with every set of options, by name."""
    out: dict[str, Any] = {"work": options.work, "reasons": {}, "runs": {}}
    workers: dict[tuple[str, str], Worker] = {}
    names = [(trainer, name) for trainer in options.trainers for name in options.options]

    def start(number: int) -> None:
        place = folder / str(number)  # compilers take no path with a space
        worker = Worker(*names[number], options.work, place, options.minutes)
        if worker.reason is not None:
            out["reasons"][names[number][0]] = worker.reason
            return
        workers[names[number]] = worker
        print(f"warm after {worker.warm:5.1f} s: {worker.name}", file=sys.stderr, flush=True)

    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(start, range(len(names))))
        out["load"] = os.getloadavg()[0]
        order, shuffler = list(workers.values()), random.Random(0)
        for _ in range(options.rounds):
            shuffler.shuffle(order)
            for worker in order:
                worker.train()
        for trainer, name in filter(workers.__contains__, names):
            worker = workers[trainer, name]
            told = worker.end() | {"warm_s": worker.warm}
            told |= {kind: [entry[kind] for entry in worker.rounds] for kind in ("wall", "cpu")}
            out["runs"].setdefault(trainer, {})[name] = told
    finally:
        for worker in workers.values():
            worker.kill()
    return out


def compare(out: dict[str, Any]) -> None:
    """Adds the medians and the ratios to what was measured."""
    for trainer, runs in out["runs"].items():
        for name, run in runs.items():
            other = out["runs"].get("transformers", {}).get(name) if trainer == "drivetrain" else None
            for kind in ("wall", "cpu"):
                run[f"{kind}_ms"] = statistics.median(run[kind])
                if "plain" in runs:
                    run[f"{kind}_to_plain"] = ratios(run[kind], runs["plain"][kind])
                if other is not None:
                    run[f"{kind}_to_transformers"] = ratios(run[kind], other[kind])
            if "plain" in runs:
                run["memory_to_plain"] = run["growth"] / runs["plain"]["growth"]


def shown(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return f"{'-':>20}"
    low, high = ratio["quartiles"]
    return f"{ratio['median']:8.3f} ({low:.2f}-{high:.2f})"


def show(out: dict[str, Any]) -> None:
    """Prints the tables."""
    print(f"load {out['load']:.1f}, {json.dumps(out['work'])}")
    for trainer, runs in out["runs"].items():
        parameters = next(iter(runs.values()))["parameters"]
        print(f"\n{trainer}, {parameters:,} parameters\n{'':23}{'MiB':>7}{'to plain':>10}{'warm s':>8}")
        for name, run in runs.items():
            memory = run.get("memory_to_plain", float("nan"))
            print(f"{name:23}{run['growth']:7.0f}{memory:10.2f}{run['warm_s']:8.1f}")
        for kind in ("wall", "cpu"):
            print(f"{kind:23}{'ms':>7}{'to plain':>20}{'to transformers':>20}")
            for name, run in runs.items():
                found = shown(run.get(f"{kind}_to_plain")), shown(run.get(f"{kind}_to_transformers"))
                print(f"{name:23}{run[f'{kind}_ms']:7.0f}{found[0]:>20}{found[1]:>20}")
    for trainer, reason in out["reasons"].items():
        print(f"{trainer} is not here: {reason}")


def main(arguments: list[str]) -> int:
    """The program; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", default=",".join(OPTIONS), help="names, separated by commas")
    parser.add_argument("--trainers", default=",".join(TRAINERS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=1, help="processes that warm up at once")
    parser.add_argument("--minutes", type=float, default=30, help="a process is ended after that time")
    parser.add_argument(
        "--work", type=json.loads, default={}, help="JSON: other figures for the work (batch, ...)"
    )
    parser.add_argument("--json", metavar="OUT", help="also write the figures, round by round, to this file")
    options = parser.parse_args(arguments)
    for kind, known in (("options", OPTIONS), ("trainers", TRAINERS)):
        words = getattr(options, kind).split(",")
        setattr(options, kind, words)
        for word in words:
            if word not in known:
                parser.error(f"unknown: {word}. Known: {', '.join(known)}")
    options.work = WORK | options.work
    with tempfile.TemporaryDirectory() as folder:
        try:
            out = measure(options, Path(folder))
        except Failed as problem:
            print(problem)
            return 1
    compare(out)
    show(out)
    if options.json:
        Path(options.json).write_text(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
