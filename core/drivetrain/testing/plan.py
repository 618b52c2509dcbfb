"""Which runs there are, by name, and what is said of each in a message."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drivetrain.testing.scenario import LEFT_OVER, MID_EPOCH, ROWS_OF_A_BATCH, Act, Scenario
from drivetrain.testing.spec import Spec

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
    "ddp_timeout": 60,
    "log_level": "error",
}

SGD: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "num_train_epochs": 2,
    "evaluation_strategy": "no",
}

UNREACHED = 1e9
"""A norm that no gradient has: it is measured, and nothing is clipped."""


@dataclass(frozen=True)
class Kind:
    """A training.

    Attributes:
        says: what it is, for messages.
        settings: arguments besides those of BASE.
        rows: of its data; the last batch of an epoch is a short one.
        saves, twice, gradients, scaled: as a scenario's.
        act: as a scenario's.
    """

    says: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: int = 6 * ROWS_OF_A_BATCH + 5
    saves: bool = False
    twice: bool = False
    gradients: bool = False
    scaled: bool = False
    act: Act = "train"


KINDS: dict[str, Kind] = {
    "plain": Kind(
        "SGD, no accumulation, nothing clipped",
        {**SGD, "gradient_accumulation_steps": 1, "max_grad_norm": UNREACHED},
        3 * ROWS_OF_A_BATCH + 5,
        twice=True,
    ),
    "accumulating": Kind(
        "SGD, three micro-batches an update, one of seven left over in each epoch, nothing clipped",
        {**SGD, "gradient_accumulation_steps": 3, "max_grad_norm": UNREACHED},
        6 * ROWS_OF_A_BATCH + 1,
    ),
    "clipped": Kind(
        "SGD, two micro-batches an update, gradients that are longer than 2 clipped",
        {**SGD, "max_grad_norm": 2.0, "learning_rate": 0.1},
        4 * ROWS_OF_A_BATCH,
    ),
    "scaled": Kind(
        "SGD, a loss scale, a first update that overflows on one rank, gradients that are longer than 2 clipped",
        {
            **SGD,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": 2.0,
            "learning_rate": 0.1,
            "lr_scheduler_type": "linear",
            "num_train_epochs": 1,
        },
        4 * ROWS_OF_A_BATCH,
        scaled=True,
    ),
    "whole": Kind("AdamW with decay, warm-up, accumulation and clipping", saves=True),
    "bf16": Kind("AdamW with decay, warm-up, accumulation and clipping, in bf16", {"bf16": True}),
    "gradients": Kind(
        "SGD, and a listener that reads and halves the gradients",
        {**SGD, "max_grad_norm": 0.0, "num_train_epochs": 1},
        4 * ROWS_OF_A_BATCH,
        gradients=True,
    ),
    "alone": Kind("an evaluation and a prediction, without a training", act="evaluate"),
    "misspelt": Kind("an option's name spelt wrong", act="misspell"),
    "raised": Kind("a training in which the last rank raises an error", SGD, act="raise"),
    "killed": Kind("a training in which the last rank is killed", SGD, act="kill"),
}

CHECKPOINTS = {"mid": MID_EPOCH, "left": LEFT_OVER}
"""Those that are gone on from: in the midst of an epoch, and one that carries gradients."""


@dataclass(frozen=True)
class Plan:
    """The runs of a contract.

    Attributes:
        spec: what the author said.
        folder: of its runs.
        references: folder of the runs of `single`, which several contracts share.
        cuda: whether they run on CUDA devices.
    """

    spec: Spec
    folder: Path
    references: Path
    cuda: bool = False

    def arguments(self, kind: str, equal: bool) -> dict[str, Any]:
        """Those that `single` gets too."""
        settings = {**BASE, **KINDS[kind].settings, **self.spec.layer("settings", equal)}
        return settings | {"use_cpu": not self.cuda}

    def reference(self, kind: str, equal: bool = True) -> Scenario:
        """The run of `single` in one process."""
        arguments = self.arguments(kind, equal)
        mark = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:10]
        made = self._scenario(f"{kind}-{mark}", kind, "single", 1, arguments, self.references)
        return replace(made, limit=max(made.limit, 120.0))

    def own(self, kind: str, equal: bool = False, world: int | None = None) -> Scenario:
        """A run of the strategy."""
        spec = self.spec
        equal = equal and bool(spec.differs)
        world = world or spec.world
        own = spec.layer("arguments", equal)
        options = {**own.pop("plugins", {}).get(spec.strategy, {}), **spec.layer("options", equal)}
        plugins = {**spec.arguments.get("plugins", {}), **({spec.strategy: options} if options else {})}
        arguments = {**self.arguments(kind, equal), "strategy": spec.strategy, **own}
        if plugins:
            arguments["plugins"] = plugins
        name = f"{kind}{'-equal' if equal else ''}@{world}"
        return self._scenario(name, kind, spec.strategy, world, arguments, self.folder)

    def equal(self, kind: str, world: int | None = None) -> Scenario:
        """The run of the strategy that must be equal to that of `single`."""
        return self.own(kind, True, world)

    def _scenario(
        self, name: str, kind: str, strategy: str, world: int, arguments: dict[str, Any], folder: Path
    ) -> Scenario:
        made = KINDS[kind]
        arguments.setdefault("per_device_train_batch_size", ROWS_OF_A_BATCH // world)
        return Scenario(
            name,
            str(folder / name),
            strategy,
            world,
            arguments,
            made.rows,
            made.act,
            saves=made.saves,
            twice=made.twice,
            gradients=made.gradients,
            scaled=made.scaled,
            limit=self.spec.limit,
            patience=self.spec.patience,
        )


def going_on(scenario: Scenario, written: Scenario, which: str) -> Scenario:
    """The run of `scenario` that goes on from a checkpoint of another one."""
    checkpoint = written.checkpoints / f"checkpoint-{CHECKPOINTS[which]}"
    name = f"{scenario.name}-from-{written.name}-{which}"
    folder = Path(scenario.folder).with_name(name)
    return replace(scenario, name=name, folder=str(folder), resume=str(checkpoint))
