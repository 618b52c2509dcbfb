"""Runs scenarios: one launch of torchrun for each number of processes, more only after a failure.

The processes watch their own time. Here is seen to it that a launch which does not even begin, or whose processes
cannot be ended by themselves, is ended with its whole process group.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drivetrain.processes import LOCAL_SIZE_VARIABLES, SIZE_VARIABLES
from drivetrain.testing.scenario import DRIVER, Outcome, Scenario, read_outcome, write

WORKER = "drivetrain.testing.worker"

GRACE = 60.0
"""Seconds, beyond its limit, that a run may be silent: processes start in them, and end."""

TOO_LONG, ENOUGH = "took too long", 3
"""So many runs may take longer than they may; after that no more are begun."""

# What a launcher has told this process, which is not meant for those that are started here.
FOREIGN = (
    *SIZE_VARIABLES,
    *LOCAL_SIZE_VARIABLES,
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)


class Runs:
    """Runs scenarios, and keeps their outcomes.

    Args:
        folder: for plans and what the processes print.
        environment: variables for the processes, besides this one's.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in FOREIGN},
            "OMP_NUM_THREADS": "1",
            DRIVER: str(os.getpid()),
            **environment,
        }
        self.outcomes: dict[str, Outcome] = {}
        self._heard = time.monotonic()
        self._launches = itertools.count(1)
        self._stopped, self._slow, self._hopeless = False, 0, ""

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Runs all, those of different numbers of processes at the same time: one may wait for another's checkpoint."""
        batches: dict[tuple[int, bool], list[Scenario]] = {}
        for scenario in scenarios:
            reference = scenario.world == 1 and scenario.strategy == "single"
            batches.setdefault((scenario.world, reference), []).append(scenario)
        self._heard, self._stopped = time.monotonic(), False
        with ThreadPoolExecutor(max(len(batches), 1)) as pool:
            try:
                for done in [pool.submit(self._all, batch) for batch in batches.values()]:
                    done.result()
            finally:
                self._stopped = True  # by Ctrl-C too, which the launches must not outlive

    def _all(self, scenarios: list[Scenario]) -> None:
        left = scenarios
        while left and not self._stopped:
            if self._hopeless:
                for scenario in left:
                    self._note(scenario, f"It was not run, since {self._hopeless}.")
                return
            left = left[self._launch(left) :]

    def _launch(self, scenarios: list[Scenario]) -> int:
        """One launch. Returns how many scenarios are done with, the one that ended it included."""
        plan = self.folder / f"launch-{next(self._launches)}-of-{scenarios[0].world}.json"
        write(scenarios, plan)
        command = [sys.executable, "-m", WORKER, str(plan)]
        if scenarios[0].world > 1 or scenarios[0].strategy != "single":
            count = str(scenarios[0].world)
            command[1:2] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m"]
        log = plan.with_suffix(".log")
        with log.open("w") as printed:
            process = subprocess.Popen(
                command,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        try:
            return self._watch(process, scenarios, plan, log)
        finally:
            end(process, plan)

    def _watch(
        self, process: subprocess.Popen[bytes], scenarios: list[Scenario], plan: Path, log: Path
    ) -> int:
        for done, scenario in enumerate(scenarios, 1):
            trouble = self._wait(process, scenario, log)
            failing = scenario.act in ("raise", "kill")
            if (failing or done == len(scenarios)) and not trouble:
                trouble = self._end_of(scenario, plan)
            if trouble:
                self._despair(trouble, plan)
            outcome = self._note(scenario, trouble)
            failed = [rank for rank in outcome.ranks if rank.error]
            whole = not failed or (len(failed) == scenario.world and not any(rank.began for rank in failed))
            if trouble or failing or not whole:
                return done  # the processes end, and the rest is begun anew
        return len(scenarios)

    def _wait(self, process: subprocess.Popen[bytes], scenario: Scenario, log: Path) -> str:
        """Until all ranks have told of a run; says what is wrong where they never will."""
        while not _has_told(scenario):
            if self._stopped:
                raise InterruptedError("The contract's runs were broken off.")
            if process.poll() is not None and not _has_told(scenario):
                return _silence(scenario, log)
            if time.monotonic() - self._heard > scenario.limit + GRACE:
                silent = f"nothing was heard within {scenario.limit + GRACE:.0f} seconds"
                return f"{silent}; {_silence(scenario, log)}"
            time.sleep(0.02)
        return ""

    def _end_of(self, scenario: Scenario, plan: Path) -> str:
        """Waits for the processes to end by themselves; says which have not."""
        until = time.monotonic() + scenario.limit + GRACE
        while time.monotonic() < until and not self._stopped:
            if not (alive := living(plan)):
                return ""
            self._heard = time.monotonic()
            time.sleep(0.02)
        return f"ranks {alive} did not end within {scenario.limit + GRACE:.0f} seconds after the run"

    def _despair(self, trouble: str, plan: Path) -> None:
        """No more runs are begun where no process begins, or each takes all the time that it has."""
        self._slow += TOO_LONG in trouble
        if not list(plan.parent.glob(f"{plan.stem}-rank-*.lock")):
            self._hopeless = f"no process has begun: {trouble}"
        elif self._slow >= ENOUGH:
            self._hopeless = f"{self._slow} runs before it took too long"

    def _note(self, scenario: Scenario, trouble: str) -> Outcome:
        """Keeps the outcome of a run, and lets those that wait for its checkpoints know that it is over."""
        outcome = read_outcome(scenario, trouble)
        if not trouble and scenario.act not in ("raise", "kill"):
            outcome.trouble = errors_of(outcome)
        self.outcomes[scenario.folder] = outcome
        ended = Path(scenario.folder) / "ended"
        ended.parent.mkdir(parents=True, exist_ok=True)
        ended.touch()
        self._heard = time.monotonic()
        return outcome


def errors_of(outcome: Outcome) -> str:
    """What the ranks say, or that one of them said nothing."""
    errors = [f"rank {rank.rank}: {rank.error}" for rank in outcome.ranks if rank.error]
    return "; ".join(errors)


def _has_told(scenario: Scenario) -> bool:
    """Whether all ranks have that live to tell."""
    tell = scenario.world - (scenario.act == "kill")
    return all((Path(scenario.folder) / f"rank-{rank}.json").exists() for rank in range(tell))


def _silence(scenario: Scenario, log: Path) -> str:
    """Which ranks have not told of a run, and where they were when their time was over."""
    folder, found = Path(scenario.folder), []
    for rank in range(scenario.world):
        if (folder / f"rank-{rank}.json").exists():
            continue
        stage, stack = folder / f"rank-{rank}.stage", folder / f"rank-{rank}.stack"
        at = f" while {stage.read_text()}" if stage.exists() else " before it began"
        frames = _frames(stack.read_text()) if stack.exists() else []
        if frames:
            found.append(f"rank {rank} {TOO_LONG}{at}; it was in {' < '.join(frames)}")
        else:
            found.append(f"rank {rank} ended{at} without a word")
    outcome = read_outcome(scenario)
    if said := errors_of(outcome):
        found.append(said)
    elif not any(TOO_LONG in each for each in found):
        lines = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        found += [lines[-1].strip()] if lines else []
    return "; ".join(found)


def _frames(dump: str) -> list[str]:
    """The innermost places in the thread that is the last of a dump, the main one."""
    lines = dump.rpartition("(most recent call first):")[2].splitlines()
    frames = []
    for line in lines:
        if line.strip().startswith("File "):
            _, path, rest = line.split('"', 2)
            number, _, function = rest.removeprefix(", line ").partition(" in ")
            frames.append(f"{function} ({Path(path).name}:{number})")
    return frames[:4]


def living(plan: Path) -> list[int]:
    """Ranks of a launch whose processes hold their locks."""
    found = []
    for path in plan.parent.glob(f"{plan.stem}-rank-*.lock"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(int(path.stem.rpartition("-")[2]))
    return sorted(found)


def end(process: subprocess.Popen[bytes], plan: Path) -> None:
    """Ends torchrun, which ends its workers, and then whatever is left of them."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for rank in living(plan):  # torchrun starts each worker in a session of its own
        pid = int((plan.parent / f"{plan.stem}-rank-{rank}.lock").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
