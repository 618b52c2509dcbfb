"""What is said of a run's time at its end: three lines, and what would help where data are waited for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drivetrain.shares import BOTTLENECK, duration, percent, share_of_data

if TYPE_CHECKING:
    from drivetrain.run import Run

logger = logging.getLogger("drivetrain")

# Seconds in all, and of each batch. A batch that is fetched faster than it is handed from one process to another
# is better fetched by the process that needs it.
_WORTH, _DEAR = 1.0, 1e-3
_SHOWN = 0.0005  # parts and plugins of less are not named


def tell(run: Run) -> None:
    """Prints the lines, where the progress is printed too; else they go to the log, as information."""
    if not run.is_main_process:
        return
    for line in lines(run):
        if run.args.disable_tqdm:
            logger.info("%s", line)
        else:
            print(line, flush=True)


def lines(run: Run) -> list[str]:
    """The time of the run, its shares, its plugins; and a hint, if there is something to say."""
    timing = run.timing
    parts = timing.parts()
    whole = sum(parts.values())
    first = f"Time: {duration(whole)}"
    if (setup := parts.get("setup", 0.0)) >= _SHOWN * whole:
        first += f", {duration(setup)} of it set-up"
    said = [first + ".", f"Spent on: {_shares(parts, whole, timing.ranks)}."]
    dear = sorted(timing.plugins.items(), key=lambda item: -item[1])
    named = [f"{name} {duration(seconds)}" for name, seconds in dear if seconds >= _SHOWN * whole]
    if named:
        said.append(f"Plugins: {', '.join(named)}.")
    else:
        said.append("Plugins: none took as much as 0.05 %.")
    if (advice := hint(run, timing.ranks or [parts])) is not None:
        said.append(advice)
    return said


def _shares(parts: Mapping[str, float], whole: float, ranks: list[dict[str, float]]) -> str:
    shown = []
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        if seconds < _SHOWN * whole:
            continue
        text = f"{part} {percent(seconds / whole)}"
        if part == "data" and len(ranks) > 1:
            waited = [rank.get("data", 0.0) / (sum(rank.values()) or 1.0) for rank in ranks]
            slowest = max(range(len(ranks)), key=waited.__getitem__)
            text += f" (rank {slowest}: {percent(waited[slowest])})"
        shown.append(text)
    return ", ".join(shown)


def hint(run: Run, ranks: list[dict[str, float]]) -> str | None:
    """What would help where data are the bottleneck; None where they are not."""
    shares = [share_of_data(parts) for parts in ranks]
    slowest = max(range(len(ranks)), key=shares.__getitem__)
    waited = ranks[slowest].get("data", 0.0)
    if shares[slowest] < BOTTLENECK or waited < _WORTH:
        return None
    where = f" in rank {slowest}" if len(ranks) > 1 else ""
    said = f"Data loading is the bottleneck: updates waited for it {percent(shares[slowest])} of their time{where}."
    batches = max(run.state.global_step * run.accumulation, 1)
    advice = _advice(run.train_dataloader, waited / batches, cores() // (run.processes.local_world_size or 1))
    return f"{said} {advice}"


def _advice(loader: Any, wait: float, cores_here: int) -> str:
    """What can be done, by what is done already.

    Args:
        loader: of the training data.
        wait: seconds for a batch.
        cores_here: that a process has for itself.
    """
    cheaper = "Rows that are prepared before the run, or a cheaper collator, would help"
    workers = getattr(loader, "num_workers", None)
    if workers is None:  # a loader of the user's own, which may fetch in any way
        return f"{cheaper}: a batch takes {duration(wait)}."
    if workers == 0 and wait < _DEAR:
        return f"{cheaper}: a batch is there in {duration(wait)}, which workers would not better."
    if workers == 0 and cores_here > 1:
        return (
            f"dataloader_num_workers={min(cores_here - 1, 4) or 1} would fetch batches while the model computes; now "
            f"the training process does it by itself, {duration(wait)} a batch."
        )
    if 0 < workers < cores_here - 1:
        return f"More than the {workers} workers would help, up to dataloader_num_workers={cores_here - 1}."
    idle = "there is a worker for each core" if workers else "there is no core for a worker"
    return f"{cheaper}; {idle} already." if workers else f"{cheaper}; {idle}."


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
