"""Runs scenarios: one launch of torchrun for each number of processes, more only after a failure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from strategies.scenario import Outcome, Scenario, read_outcome, write

WORKER = Path(__file__).with_name("worker.py")

PATIENCE = 150.0
"""Seconds without any scenario's end after which a launch counts as hung."""

FAREWELL = 10.0
"""Seconds that torchrun has to end its workers itself."""

Told = Callable[[Scenario, Outcome], None]


def run_all(
    scenarios: list[Scenario], out: Path, told: Told | None = None, patience: float = PATIENCE
) -> dict[str, Outcome]:
    """Runs scenarios of one number of processes, in their order.

    Args:
        scenarios: all of one world size.
        out: each scenario gets a folder in it.
        told: called with each scenario and its outcome as soon as it is there.
        patience: seconds without any scenario's end after which the launch is ended.

    Returns:
        The outcomes by the scenarios' names.
    """
    left = list(scenarios)
    outcomes: dict[str, Outcome] = {}
    attempt = 0
    while left:
        attempt += 1
        log = out / f"launch-{left[0].world}-{left[0].name}-{attempt}.log"
        done = _launch(left, out, log, outcomes, told, patience)
        left = left[done:]
    return outcomes


def _launch(
    scenarios: list[Scenario],
    out: Path,
    log: Path,
    outcomes: dict[str, Outcome],
    told: Told | None,
    patience: float,
) -> int:
    """One launch. Returns how many scenarios are done with, the one that ended it included."""
    plan = log.with_suffix(".json")
    write(scenarios, plan)
    world = scenarios[0].world
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w") as printed:
        process = subprocess.Popen(
            [*command, str(WORKER), str(plan), str(out)],
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        done, heard = 0, time.monotonic()
        workers: set[int] = set()
        try:
            while done < len(scenarios):
                ended = process.poll() is not None
                workers |= _started_by(process.pid)
                now = done
                while done < len(scenarios) and _is_whole(scenarios[done], out):
                    _note(scenarios[done], out, outcomes, told)
                    done += 1
                if done > now:
                    heard = time.monotonic()
                elif ended and done and outcomes[scenarios[done - 1].name].trouble:
                    break  # the workers end after a failure, and the rest is begun anew
                elif ended or time.monotonic() - heard > patience:
                    reason = "the launch ended" if ended else f"no end within {patience:.0f} seconds"
                    _blame(scenarios[done], out, reason, log)
                    _note(scenarios[done], out, outcomes, told)
                    done += 1
                    break
                time.sleep(0.02)
            else:
                process.wait(60)
        except subprocess.TimeoutExpired:
            _blame(scenarios[-1], out, "the processes did not end after the last run", log)
            _note(scenarios[-1], out, outcomes, None)
        finally:
            _end(process, workers | _started_by(process.pid))
    return done


def _is_whole(scenario: Scenario, out: Path) -> bool:
    return all((out / scenario.name / f"rank-{rank}.json").exists() for rank in range(scenario.world))


def _note(scenario: Scenario, out: Path, outcomes: dict[str, Outcome], told: Told | None) -> None:
    outcomes[scenario.name] = read_outcome(scenario, out)
    if told is not None:
        told(scenario, outcomes[scenario.name])


def _blame(scenario: Scenario, out: Path, reason: str, log: Path) -> None:
    folder = out / scenario.name
    folder.mkdir(parents=True, exist_ok=True)
    missing = [r for r in range(scenario.world) if not (folder / f"rank-{r}.json").exists()]
    outcome = read_outcome(scenario, out)
    errors = "; ".join(f"rank {rank['rank']}: {rank['error']}" for rank in outcome.ranks if rank["error"])
    lines = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    more = errors or (lines[-1].strip() if lines else "")
    (folder / "trouble.txt").write_text(f"{reason}, ranks {missing} silent; {more} (see {log.name})")


def _started_by(agent: int) -> set[int]:
    """The workers of torchrun, each of which leads a process group of its own."""
    with contextlib.suppress(OSError):
        return {int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()}
    return set()


def _end(process: subprocess.Popen[bytes], workers: set[int]) -> None:
    """Ends torchrun's process group and those of its workers, who may hang in a collective and hear no signal."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(FAREWELL)
    for leader in (process.pid, *workers):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
    process.wait()
