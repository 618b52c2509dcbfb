"""A step under each strategy, through drivetrain and through the same engine driven by hand, side by side.

    python bench/strategies.py                                   # everything: engines, trainers, models, memory
    python bench/strategies.py --strategies ddp,fsdp2 --models small --rounds 21 --no-memory --json out.json

Two processes on this machine, talking by gloo; one command starts them all. Engines: DDP, both generations of FSDP,
DeepSpeed's ZeRO-2 and fairscale's OSS. In one pair of processes all trainers of one engine run in turn, in a new
order every round, so that a machine whose speed drifts does no harm. Two figures stand for a step, both with the
ratio to the loop by hand of the same round (median and quartiles over rounds); `control` is the loop by hand once
more, and tells how far two equal drivers differ in this run:

- wall time, which two processes need two idle cores for;
- processor time, of both processes together: a process that waits uses none, so other work on the machine
  disturbs it little. It is the figure to trust on a machine that others use as well. "low" is the ratio of the lowest
  deciles of all windows, for each driver what it costs where nothing disturbs it.

Memory is the highest resident set of a process, each trainer in a pair of its own: in all, and above what was there
before the model was built (the larger of the two processes).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STRATEGIES = ("ddp", "fsdp2", "fsdp1", "zero2", "oss")
DRIVERS = ("hand", "control", "drivetrain", "accelerate", "lightning")
MODELS = ("small", "transformer")
TARGET = 1.03  # drivetrain to the loop by hand
PROCESSES = 2


class Failed(Exception):
    """A pair of processes that did not come to the end."""


def pair(spec: dict[str, Any], folder: Path, minutes: float) -> list[dict[str, Any]]:
    """Starts the processes, and returns what each of them found.

    Raises:
        Failed: with the end of their output.
    """
    spec = {**spec, "out": str(folder / "out")}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(PROCESSES),
    ]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, str(HERE / "strategies_worker.py"), json.dumps(spec)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(timeout=minutes * 60)
        except subprocess.TimeoutExpired:
            code = f"not at its end after {minutes:g} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        raise Failed(f"{spec['strategy']}, {spec['model']}: {code}\n{log.read_text()[-6000:]}")
    return [json.loads((folder / f"out.{rank}").read_text()) for rank in range(PROCESSES)]


def start(spec: dict[str, Any], minutes: float = 30) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return pair(spec, Path(folder), minutes)


class Figures:
    """What is said of one driver's time.

    Attributes:
        wall, cpu: milliseconds a step, one of each round; processor time is that of all processes.
        low: processor milliseconds a step in the lowest decile of windows.
    """

    def __init__(self, ranks: list[list[list[list[float]]]]) -> None:
        self.wall = [statistics.fmean(wall for wall, _ in windows) for windows in ranks[0]]
        together = [
            [sum(cpu for _, cpu in window) for window in zip(*windows, strict=True)]
            for windows in zip(*ranks, strict=True)
        ]
        self.cpu = [statistics.fmean(windows) for windows in together]
        every = sorted(cpu for windows in together for cpu in windows)
        self.low = every[len(every) // 10]

    def to(self, base: Figures) -> dict[str, Any]:
        """Ratios to another driver: median and quartiles over rounds, and that of the lowest deciles."""
        out: dict[str, Any] = {"low": self.low / base.low}
        for name in ("wall", "cpu"):
            ratios = sorted(a / b for a, b in zip(getattr(self, name), getattr(base, name), strict=True))
            last = len(ratios) - 1
            quartiles = ratios[round(last / 4)], ratios[round(last * 3 / 4)]
            out[name] = {"median": statistics.median(ratios), "quartiles": quartiles}
        return out


def timing(options: argparse.Namespace, model: str, strategy: str) -> dict[str, Any]:
    """Times the drivers of one engine; the rounds are dealt over `options.launches` pairs of processes."""
    ranks: dict[str, list[list[Any]]] = {}
    reasons: dict[str, str] = {}
    about: dict[str, Any] = {}
    for launch in range(options.launches):
        spec = {
            "kind": "time",
            "model": model,
            "strategy": strategy,
            "drivers": options.drivers,
            "seed": launch,
        }
        found = start(
            {**spec, "rounds": options.rounds, "windows": options.windows, "work": options.work},
            options.minutes,
        )
        reasons |= found[0]["reasons"]
        about |= found[0]["about"]
        for driver in found[0]["rounds"]:
            mine = ranks.setdefault(driver, [[] for _ in found])
            for rank, part in zip(mine, found, strict=True):
                rank.extend(part["rounds"][driver])
    out: dict[str, Any] = {"reasons": reasons, "drivers": {}}
    figures = {driver: Figures(mine) for driver, mine in ranks.items() if driver not in reasons}
    for driver, mine in figures.items():
        entry = {"wall_ms": statistics.median(mine.wall), "cpu_ms": statistics.median(mine.cpu)}
        entry |= {"low_ms": mine.low, "rounds": {"wall": mine.wall, "cpu": mine.cpu}, **about[driver]}
        if "hand" in figures:
            entry["to_hand"] = mine.to(figures["hand"])
        out["drivers"][driver] = entry
    return out


def memory(options: argparse.Namespace, model: str, strategy: str, drivers: list[str]) -> dict[str, Any]:
    """Peak MiB of each driver, and its growth: medians over launches of the larger process."""
    runs: dict[str, list[tuple[float, float]]] = {driver: [] for driver in drivers}
    for _ in range(options.memory_launches):
        for driver in drivers:
            spec = {"kind": "memory", "model": model, "strategy": strategy, "drivers": [driver]}
            found = start({**spec, "windows": 1, "work": options.work}, options.minutes)
            if not any("reason" in part for part in found):
                both = max(part["peak"] for part in found), max(part["growth"] for part in found)
                runs[driver].append(both)
    return {
        driver: {
            "peak_mib": statistics.median(p for p, _ in r),
            "growth_mib": statistics.median(g for _, g in r),
        }
        for driver, r in runs.items()
        if r
    }


def show(model: str, strategy: str, found: dict[str, Any]) -> bool | None:
    """Prints one engine's table; returns whether the target is met, None where it was not measured."""
    print(
        f"\n{strategy}, {model}\n{'':12}{'wall ms':>9}{'to hand':>9}{'(quartiles)':>14}"
        f"{'cpu ms':>9}{'to hand':>9}{'(quartiles)':>14}{'low':>8}{'peak MiB':>10}{'of which training':>19}"
    )
    for driver, entry in found["drivers"].items():
        line = f"{driver:12}"
        ratios = entry.get("to_hand")
        for kind in ("wall", "cpu"):
            line += f"{entry[kind + '_ms']:9.2f}"
            if ratios:
                low, high = ratios[kind]["quartiles"]
                line += f"{ratios[kind]['median']:9.3f}{f'{low:.2f}-{high:.2f}':>14}"
            else:
                line += " " * 23
        line += f"{ratios['low']:8.3f}" if ratios else " " * 8
        if "peak_mib" in entry:
            line += f"{entry['peak_mib']:10.0f}{entry['growth_mib']:19.0f}"
        print(line)
    for driver, reason in found["reasons"].items():
        print(f"{driver:12} not here: {reason}")
    ratios = found["drivers"].get("drivetrain", {}).get("to_hand")
    if ratios is None:
        return None
    words = []
    for kind in ("wall", "cpu"):
        median = ratios[kind]["median"]
        words.append(f"{kind} {median:.3f} {'met' if median <= TARGET else 'MISSED'}")
    print(f"target: drivetrain at most {TARGET:.2f} of the loop by hand; {', '.join(words)}")
    met: bool = all(ratios[kind]["median"] <= TARGET for kind in ("wall", "cpu"))
    return met


def main(arguments: list[str]) -> int:
    """The program; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="names, separated by commas")
    parser.add_argument("--drivers", default=",".join(DRIVERS), help="names, separated by commas")
    parser.add_argument("--models", default=",".join(MODELS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=8, help="of each pair of processes")
    parser.add_argument("--launches", type=int, default=2, help="pairs of processes that time an engine")
    parser.add_argument("--windows", type=int, default=2, help="timed in each round")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument(
        "--memory-launches", type=int, default=3, help="pairs of processes that weigh a driver"
    )
    parser.add_argument(
        "--minutes", type=float, default=30, help="a pair of processes is ended after that time"
    )
    parser.add_argument(
        "--work", type=json.loads, default={}, help="JSON: other figures for the work (warm_up, ...)"
    )
    parser.add_argument("--json", metavar="OUT", help="also write the figures, round by round, to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the target is missed")
    options = parser.parse_args(arguments)
    named = {"strategies": STRATEGIES, "drivers": DRIVERS, "models": MODELS}
    for kind, known in named.items():
        words = getattr(options, kind).split(",")
        setattr(options, kind, words)
        for word in words:
            if word not in known:
                parser.error(f"unknown: {word}. Known: {', '.join(known)}")
    out: dict[str, Any] = {"models": {}, "targets_met": {}}
    failed = False
    for model in options.models:
        table = out["models"].setdefault(model, {})
        for strategy in options.strategies:
            load = os.getloadavg()[0]
            try:
                found = timing(options, model, strategy)
                # The small model's memory is that of the libraries.
                if not options.no_memory and model != "small":
                    able = [driver for driver in options.drivers if driver in found["drivers"]]
                    for driver, entry in memory(options, model, strategy, able).items():
                        found["drivers"][driver] |= entry
            except Failed as problem:
                print(f"\n{strategy}, {model}: failed\n{problem}")
                out["targets_met"][f"{strategy}, {model}"], failed = None, True
                continue
            found["load"] = load
            table[strategy] = found
            out["targets_met"][f"{strategy}, {model}"] = show(model, strategy, found)
            sys.stdout.flush()
    if options.json:
        Path(options.json).write_text(json.dumps(out, indent=1))
    return 1 if failed or (options.check and not all(out["targets_met"].values())) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
