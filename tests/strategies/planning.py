"""Which runs prove what: lists of scenarios, and what each must be equal to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies.configurations import CONFIGURATIONS, Configuration
from strategies.scenario import LAST, LEFT_OVER, MID_EPOCH, ROWS_AN_UPDATE, Scenario

ALL = (LEFT_OVER, MID_EPOCH, LAST)

KINDS = {"mid": MID_EPOCH, "left": LEFT_OVER}
"""Checkpoints that are resumed: from the midst of an epoch, and one that holds gradients."""

VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "plain": {
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "cosine",
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
        "num_train_epochs": 2,
    },
    "bf16": {"bf16": True},
}
"""`whole`: AdamW, accumulation, clipping, decay. `plain`: SGD, nothing of these; a factor that a gradient has
too much shows here, where nothing divides it out."""

STUBBORN: dict[str, dict[str, Any]] = {
    "adafactor": {"optim": "adafactor"},
    "muon": {"optim": "muon"},
}
"""Optimizers whose state is not element by element."""


@dataclass(frozen=True)
class Hop:
    """A checkpoint that one wrote and another reads: configuration and number of processes of each."""

    writer: str
    written_by: int
    reader: str
    read_by: int
    kind: str

    @property
    def name(self) -> str:
        """Of the scenario that reads."""
        return f"{self.reader}@{self.read_by}-from-{self.writer}@{self.written_by}-{self.kind}"

    def scenario(self, out: Path) -> Scenario:
        """The run that goes on."""
        checkpoint = out / whole(self.writer, self.written_by) / "run" / f"checkpoint-{KINDS[self.kind]}"
        return Scenario(self.name, self.reader, self.read_by, resume=str(checkpoint))


def whole(configuration: str, world: int) -> str:
    """The name of the run that never changes, which writes the checkpoints."""
    return variant("whole", configuration, world)


def variant(kind: str, configuration: str, world: int) -> str:
    """The name of a run from the beginning to the end."""
    return f"{configuration}@{world}-{kind}"


def variants(configuration: Configuration, world: int, kinds: tuple[str, ...]) -> list[Scenario]:
    """Runs from the beginning to the end; the first of them writes what others read."""
    return [
        Scenario(
            variant(kind, configuration.name, world),
            configuration.name,
            world,
            VARIANTS[kind],
            saves=ALL if kind == "whole" else (LAST,),
        )
        for kind in kinds
    ]


def stubborn(configuration: Configuration, world: int) -> list[Scenario]:
    """Optimizers that cannot move: they train as under `single`, or are refused before the first step."""
    return [
        Scenario(
            variant(name, configuration.name, world),
            configuration.name,
            world,
            settings,
            fails=() if name in configuration.moves else (configuration.strategy, name),
        )
        for name, settings in STUBBORN.items()
    ]


def elastic(configuration: str, written_by: int, read_by: int, kind: str, out: Path) -> Scenario:
    """Goes on with another number of processes and the same arguments: the global batch is kept."""
    return Scenario(
        elastic_name(configuration, written_by, read_by, kind),
        configuration if read_by in CONFIGURATIONS[configuration].worlds else "single",
        read_by,
        resume=str(out / whole(configuration, written_by) / "run" / f"checkpoint-{KINDS[kind]}"),
        rows=ROWS_AN_UPDATE // written_by,
    )


def elastic_name(configuration: str, written_by: int, read_by: int, kind: str) -> str:
    """Of such a run."""
    return f"{configuration}@{read_by}-elastic-from-{written_by}-{kind}"


def canonical_hops(configuration: Configuration, world: int) -> list[Hop]:
    """It reads what `single` wrote, and `single` reads what it wrote."""
    mine = [
        hop
        for kind in KINDS
        for hop in (
            Hop("single", 1, configuration.name, world, kind),
            Hop(configuration.name, world, "single", 1, kind),
        )
    ]
    return list(dict.fromkeys(mine))


DIRECT = tuple(
    Hop(*entry)
    for entry in (
        ("zero3", 4, "fsdp2-full", 2, "mid"),
        ("fsdp2-full", 4, "zero3", 2, "left"),
        ("oss", 2, "zero2", 1, "left"),
        ("zero2", 4, "oss", 2, "mid"),
        ("fsdp1-full", 2, "fsdp2-full", 4, "left"),
        ("fsdp2-grad-op", 2, "fsdp1-grad-op", 2, "mid"),
        ("fsdp1-grad-op", 4, "zero1", 2, "left"),
        ("zero1", 2, "fsdp1-full", 4, "mid"),
        ("ddp", 4, "zero3", 4, "mid"),
        ("zero3", 2, "ddp", 4, "left"),
        ("oss", 4, "fsdp2-grad-op", 4, "mid"),
        ("fsdp2-full", 1, "oss", 4, "left"),
        ("zero0", 2, "ddp", 2, "left"),
        ("ddp", 2, "oss", 2, "left"),
        ("zero2", 2, "zero3", 4, "left"),
        ("zero3", 1, "zero1", 4, "mid"),
    )
)


def every_hop(configurations: list[Configuration]) -> list[Hop]:
    """Each (configuration, number of processes) to each, with the checkpoint of each kind."""
    places = [
        (configuration.name, world) for configuration in configurations for world in configuration.worlds
    ]
    return [Hop(*writer, *reader, kind) for writer in places for reader in places for kind in KINDS]
