"""One run of a trainer, as data: it goes to the worker as JSON, and its outcome comes back in files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROWS_AN_UPDATE = 8
"""Rows of a global batch, whatever the number of processes."""

MID_EPOCH, LEFT_OVER, LAST = 5, 3, 9
"""Updates after which checkpoints are written: within the second epoch; at the end of the first, with a
micro-batch left over; and after the last."""

BASE: dict[str, Any] = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
    "logging_steps": 2,
    "evaluation_strategy": "steps",
    "eval_steps": 4,
    "per_device_eval_batch_size": 3,
    "eval_accumulation_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "ddp_timeout": 60,
    "log_level": "error",
}
"""Seven batches an epoch and two an update: one is left over. Some updates are clipped, and some are not."""


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        name: of its folder; unique.
        configuration: a name of the table.
        world: number of processes.
        settings: arguments besides those of BASE and of the configuration.
        resume: the checkpoint to go on from.
        rows: rows of a process and micro-batch; by default what makes ROWS_AN_UPDATE.
        saves: updates after which a checkpoint is written; LAST is the last whatever its number.
        fails: the run must end in an error in which each of these words stands, on every rank.
        cell: the values of a cell of the table of combinations, which only trains; empty for other runs.
        breaks: rank 1 fails in the middle of an update, and all processes end.
    """

    name: str
    configuration: str
    world: int
    settings: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    rows: int | None = None
    saves: tuple[int, ...] = (LAST,)
    fails: tuple[str, ...] = ()
    cell: dict[str, str] = field(default_factory=dict)
    breaks: bool = False

    @property
    def rows_a_process(self) -> int:
        """Rows of a process and micro-batch."""
        return self.rows or ROWS_AN_UPDATE // self.world


def write(scenarios: list[Scenario], path: Path) -> None:
    """For the worker."""
    path.write_text(json.dumps([asdict(scenario) for scenario in scenarios]))


def read(path: Path) -> list[Scenario]:
    """What `write` wrote."""
    made = []
    for entry in json.loads(path.read_text()):
        made.append(Scenario(**entry | {"saves": tuple(entry["saves"]), "fails": tuple(entry["fails"])}))
    return made


@dataclass
class Outcome:
    """What a scenario left.

    Attributes:
        ranks: what each rank said of itself; keys are those of `worker.Report`. A rank that never said
            anything is not there.
        tensors: of rank 0: `weights`, `predictions`.
        folder: the run's folder, with its checkpoints.
        trouble: why there is no outcome, or "".
    """

    ranks: list[dict[str, Any]]
    tensors: dict[str, Any]
    folder: Path
    trouble: str = ""


def read_outcome(scenario: Scenario, out: Path) -> Outcome:
    """From the scenario's folder."""
    folder = out / scenario.name
    ranks = []
    for rank in range(scenario.world):
        path = folder / f"rank-{rank}.json"
        if path.exists():
            ranks.append(json.loads(path.read_text()))
    told = (folder / "trouble.txt").read_text() if (folder / "trouble.txt").exists() else ""
    tensors = {}
    if (folder / "tensors.pt").exists():
        tensors = torch.load(folder / "tensors.pt", weights_only=True)
    errors = [f"rank {rank['rank']}: {rank['error']}" for rank in ranks if rank["error"]]
    if scenario.fails:
        same = len(errors) == scenario.world and all(
            word.lower() in error.lower() for error in errors for word in scenario.fails
        )
        trouble = "" if same and all(rank["before_first_step"] for rank in ranks) else told
        if not same:
            trouble = f"must fail with {', '.join(scenario.fails)} on every rank; {told} {'; '.join(errors) or 'it ran'}"
        elif not all(rank["before_first_step"] for rank in ranks):
            trouble = "failed only after the first step"
        return Outcome(ranks, tensors, folder / "run", trouble)
    if len(ranks) < scenario.world or errors:
        told = told or ("; ".join(errors) if errors else "a rank never ended")
    return Outcome(ranks, tensors, folder / "run", told)
