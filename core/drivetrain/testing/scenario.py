"""One run of a Trainer, as data: it goes to the processes as JSON, and what came of it comes back in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

ROWS_OF_A_BATCH = 12
"""Of all processes together, whatever their number, in a micro-batch."""

LEFT_OVER, MID_EPOCH, LAST = 3, 5, 9
"""Updates of the run `whole` after which it writes a checkpoint: at the end of the first epoch, with a micro-batch
left over; in the midst of the second epoch; and at the end."""

DRIVER = "DRIVETRAIN_CONTRACT_DRIVER"
"""The variable that tells the processes who has started them, for whom alone they wait."""

Act = Literal["train", "evaluate", "misspell", "raise", "kill"]


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        name: of the run, and of its folder.
        folder: where it writes; absolute.
        strategy: the plugin's name.
        world: number of processes.
        arguments: for TrainingArguments, all of them.
        rows: of the training data.
        act: what is done: a training and a prediction; an evaluation and a prediction by themselves; a training with
            an option's name spelt wrong; or one in which the last rank raises an error, or is killed, in its second
            update.
        resume: folder of the checkpoint to go on from.
        saves: whether checkpoints are written.
        twice: whether the same trainer trains a second time.
        gradients: whether a listener reads the gradients, and halves them.
        scaled: whether the loss is scaled.
        limit: seconds.
        patience: seconds that a rank may take to end, when another has failed.
    """

    name: str
    folder: str
    strategy: str
    world: int
    arguments: dict[str, Any]
    rows: int
    act: Act = "train"
    resume: str | None = None
    saves: bool = False
    twice: bool = False
    gradients: bool = False
    scaled: bool = False
    limit: float = 120.0
    patience: float = 20.0

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return Path(self.folder) / "run"


def write(scenarios: Sequence[Scenario], path: Path) -> None:
    """For the processes."""
    path.write_text(json.dumps([asdict(scenario) for scenario in scenarios]))


def read(path: Path) -> list[Scenario]:
    """What `write` wrote."""
    return [Scenario(**entry) for entry in json.loads(path.read_text())]


@dataclass
class Report:
    """What one rank says of a run.

    Attributes:
        rank: which one.
        error: class and sentence of the error that ended the run, in one line; "" where it came to its end.
        trace: where the error was raised.
        began: whether the first update was done.
        seconds: of the whole run.
        strategy: name of the plugin in the slot.
        classes: of the wrapped model and of the optimizer, with their ancestors.
        shows_gradients: as the strategy says.
        options: names of the options that the plugin has.
        misspelt: the option that it was given and does not have.
        held: elements of parameters and of the optimizer's state on this rank.
        losses: this rank's share of each micro-batch's loss.
        norms: of each update, before clipping; None where nothing measured it, or the loss scaler skipped it.
        stepped: whether each update stepped.
        again: losses of the second training.
        events: each that was heard, with its step.
        log: the trainer's, without times.
        training_loss: as `train` returned it.
        weights, predictions: digests, to compare ranks.
        metrics: of the prediction.
        metrics_saw_the_same: whether `compute_metrics` was given what `predict` gave back.
        bare: what is wrong with the model that came back, a sentence each.
        bare_loss: of one batch, by the model that came back, on this rank alone.
    """

    rank: int
    error: str = ""
    trace: str = ""
    began: bool = False
    seconds: float = 0.0
    strategy: str = ""
    classes: list[str] = field(default_factory=list)
    shows_gradients: bool | None = None
    options: list[str] = field(default_factory=list)
    misspelt: str = ""
    held: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    stepped: list[bool] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    training_loss: float = 0.0
    weights: str = ""
    predictions: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_saw_the_same: bool = True
    bare: list[str] = field(default_factory=list)
    bare_loss: float = 0.0


@dataclass
class Outcome:
    """What a run left.

    Attributes:
        scenario: that was run.
        ranks: their reports, in order; a rank that never said anything is not there.
        trouble: why the run has not come to the end that it should have, or "".
        tensors: of rank 0: `weights`, `predictions`, `gradients`, by name; and `bare`, gradients of the model that
            came back.
        restored: the state that the strategy gave right after it was set, all ranks' parts together.
    """

    scenario: Scenario
    ranks: list[Report] = field(default_factory=list)
    trouble: str = ""
    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    restored: dict[str, Any] = field(default_factory=dict)

    @property
    def losses(self) -> list[float]:
        """Each micro-batch's, over all its rows."""
        return mean_of([rank.losses for rank in self.ranks])

    @property
    def again(self) -> list[float]:
        """Those of the second training."""
        return mean_of([rank.again for rank in self.ranks])


def mean_of(lists: list[list[float]]) -> list[float]:
    """Of the first entries, of the second, and so on, as far as all lists go."""
    return [sum(each) / len(each) for each in zip(*lists, strict=False)]


def read_outcome(scenario: Scenario, trouble: str = "") -> Outcome:
    """From the run's folder."""
    folder = Path(scenario.folder)
    made = Outcome(scenario, trouble=trouble)
    for rank in range(scenario.world):
        if (path := folder / f"rank-{rank}.json").exists():
            made.ranks.append(Report(**json.loads(path.read_text())))
        if (path := folder / f"restored-{rank}.pt").exists():
            for part, entries in torch.load(path, weights_only=True).items():
                made.restored.setdefault(part, type(entries)())
                if isinstance(entries, dict):
                    made.restored[part] |= entries
                else:
                    made.restored[part] = made.restored[part] or entries
    if (path := folder / "tensors.pt").exists():
        made.tensors = torch.load(path, weights_only=True)
    return made
