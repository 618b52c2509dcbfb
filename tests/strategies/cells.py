"""The combinations that are tried: what can be chosen, what cannot go together, and the cells of the table.

A cell is one value for each factor. Every strategy's cells hold, in full, fp32 and bf16, accumulation, clipping and
gradient checkpointing; optimizers and torch.compile are dealt out over these so that every pair of values stands in
a cell that trains. What cannot go together stands in cells of its own, each with one reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch

from strategies.configurations import CONFIGURATIONS, Configuration
from strategies.covering import Row, Target, cover, pairs
from strategies.model import LONGEST, TRAINED_ROWS, Small, build, rows
from strategies.scenario import ROWS_AN_UPDATE, Scenario

FACTORS: dict[str, tuple[str, ...]] = {
    "strategy": tuple(CONFIGURATIONS),
    "precision": ("fp32", "bf16", "fp16"),
    "accumulation": ("1", "3", "3+1"),
    "clipping": ("on", "off"),
    "checkpointing": ("off", "on"),
    "optimizer": (
        "adamw_torch",
        "sgd",
        "adafactor",
        "muon",
        "adamw_torch_fused",
        "adamw_hf",
        "adagrad",
        "rmsprop",
        "lion",
        "schedule_free_adamw",
        "adamw_bnb_8bit",
        "handed in",
    ),
    "compile": ("off", "aot_eager"),
}
"""Accumulation `1` goes one batch beyond the first epoch, whose last is short. `3+1`: three
micro-batches an update, and at the end of the first epoch one is left over."""

RATES = {"sgd": 0.05, "rmsprop": 1e-3, "lion": 1e-4}
"""Learning rates that are not 0.003. Small where a step is as long for a small gradient, which bf16 may turn."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "precision": {"fp32": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}},
    "accumulation": {
        "1": {"gradient_accumulation_steps": 1, "max_steps": 8},
        "3": {"gradient_accumulation_steps": 3},
        "3+1": {"gradient_accumulation_steps": 3},
    },
    "clipping": {"on": {"max_grad_norm": 0.5}, "off": {"max_grad_norm": 0.0}},
    "checkpointing": {"off": {}, "on": {"gradient_checkpointing": True}},
    "optimizer": {
        name: {"optim": name, "learning_rate": RATES.get(name, 3e-3)}
        for name in FACTORS["optimizer"]
        if name != "handed in"
    }
    | {"handed in": {"learning_rate": 3e-3}},
    "compile": {"off": {}, "aot_eager": {"torch_compile_backend": "aot_eager"}},
}

BASE: dict[str, Any] = {
    "num_train_epochs": 2,
    "weight_decay": 0.1,
    "warmup_steps": 1,
    "logging_steps": 1,
    "evaluation_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "ddp_timeout": 120,
    "log_level": "error",
}

BREAKS = "rank 1 fails in the middle of an update"
"""What the rank says that is made to fail."""


def refusals(cell: Row) -> list[tuple[str, ...]]:
    """Why a cell, or what is known of it, cannot be: the words that its error must have, both sides and the cure."""
    found: list[tuple[str, ...]] = []
    if cell.get("precision") == "fp16":
        found.append(("fp16=True", "use_cpu=True", "Use bf16=True"))
    optimizer, configuration = cell.get("optimizer"), CONFIGURATIONS.get(cell.get("strategy", ""))
    if configuration is None or optimizer is None:
        return found
    strategy = f"strategy '{configuration.strategy}'"
    whole = "adafactor" in configuration.moves
    if optimizer in ("adafactor", "muon") and not whole:
        found.append((optimizer, strategy, "use optim='adamw_torch'"))
    if optimizer == "adamw_bnb_8bit" and not whole:
        named = optimizer if configuration.strategy == "fsdp" else "bitsandbytes.AdamW"
        found.append((named, strategy, "optim='adamw_torch'"))
    if optimizer == "schedule_free_adamw" and configuration.name in ("zero1", "zero2", "zero3", "oss"):
        found.append(("AdamWScheduleFree", strategy, "use strategy='ddp'"))
    return found


REQUIRED: dict[str, tuple[str, ...]] = {
    "precision": ("fp32", "bf16"),
    "accumulation": FACTORS["accumulation"],
    "clipping": FACTORS["clipping"],
    "checkpointing": FACTORS["checkpointing"],
}
"""What must train under every strategy, each with each."""


def required() -> list[Row]:
    """All that must train; compiled are some of each strategy's, in which every value of every factor is."""
    rows = []
    for number, strategy in enumerate(FACTORS["strategy"]):
        # Turned by the strategy's number, so that it is not the same three under each.
        turned = {
            name: values[(turn := (number >> place) % len(values)) :] + values[:turn]
            for place, (name, values) in enumerate(REQUIRED.items())
        }
        singles = [frozenset({(name, value)}) for name, values in turned.items() for value in values]
        compiled = cover(turned, singles)
        for each in itertools.product(*REQUIRED.values()):
            row = dict(zip(REQUIRED, each, strict=True))
            rows.append({"strategy": strategy, **row, "compile": "aot_eager" if row in compiled else "off"})
    return rows


def trained_targets() -> list[Target]:
    """Every pair that can train."""
    return [target for target in pairs(FACTORS) if not refusals(dict(target))]


def refused_targets() -> list[Target]:
    """Every pair that cannot."""
    return [target for target in pairs(FACTORS) if len(refusals(dict(target))) == 1]


def all_cells() -> list[Row]:
    """The cells of the table, always the same."""
    trained = cover(FACTORS, trained_targets(), required(), lambda row: not refusals(row))
    refused = cover(FACTORS, refused_targets(), possible=lambda row: len(refusals(row)) < 2)
    return sorted(trained + refused, key=lambda cell: FACTORS["strategy"].index(cell["strategy"]))


ANY_LENGTH = ("ddp", "fsdp2-full", "zero2")
"""Strategies, of three engines, in whose compiled cells with micro-batches left over rows have any length."""


def lengths(cell: Row) -> str:
    """Of the rows: `mixed`; or `one`, for which far less is compiled."""
    mixed = cell["compile"] == "off" or (cell["strategy"] in ANY_LENGTH and cell["accumulation"] == "3+1")
    return cell.get("lengths", "mixed" if mixed else "one")


def model_of_cells() -> Small:
    """The model, in which no parameter begins at zero.

    Such a one would be the sum of its few steps, and where bf16 turns the sign of a small gradient, another one.
    """
    model = build()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
    return model


def reference(cell: Row) -> Row:
    """The run of one process that a cell must be equal to: neither compiled nor recomputed, which change nothing."""
    row = cell | {"strategy": "single", "checkpointing": "off", "compile": "off"}
    return row if lengths(cell) == "mixed" else row | {"lengths": "one"}


def references(cells: Iterable[Row]) -> list[Row]:
    """Those of all cells that train, and the fp32 twin of each, from which bf16 must differ."""
    trained = [reference(cell) for cell in cells if not refusals(cell)]
    found = [row for cell in trained for row in (cell, cell | {"precision": "fp32"})]
    return list({name_of(row): row for row in found}.values())


def name_of(cell: Row) -> str:
    """Of the cell's scenario."""
    words = [cell[factor].replace(" ", "_") for factor in FACTORS]
    return "-".join([*words, *(["one_length"] if "lengths" in cell else [])])


def scenario_of(cell: Row, breaks: bool = False) -> Scenario:
    """The run of a cell; or one of these settings in which a rank fails."""
    configuration = CONFIGURATIONS[cell["strategy"]]
    words = refusals(cell)
    return Scenario(
        name_of(cell) + ("-breaks" if breaks else ""),
        configuration.name,
        world_of(configuration),
        {
            **BASE,
            **{
                key: value
                for factor, values in SETTINGS.items()
                for key, value in values[cell[factor]].items()
            },
        },
        saves=(),
        fails=("ConfigurationError", *words[0]) if words else (),
        cell=cell,
        breaks=breaks,
    )


def world_of(configuration: Configuration) -> int:
    """Two processes where it can have them."""
    return 2 if 2 in configuration.worlds else 1


def data_of(cell: Row) -> list[dict[str, Any]]:
    """Seven batches, the last of them short; or six, where no micro-batch is to be left over."""
    count = TRAINED_ROWS - ROWS_AN_UPDATE if cell["accumulation"] == "3" else TRAINED_ROWS
    if lengths(cell) == "mixed":
        return rows(count, 1)
    return [row for row in rows(10 * count, 1) if len(row["words"]) == LONGEST][:count]


def handed_in(cell: Row, model: torch.nn.Module) -> tuple[Any, None] | None:
    """The optimizer that a user built, of a class that no plugin has and with two groups; None for the others."""
    if cell["optimizer"] != "handed in":
        return None
    matrices = [p for p in model.parameters() if p.dim() == 2 and p.requires_grad]
    others = [p for p in model.parameters() if p.dim() != 2 and p.requires_grad]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "lr": 1.5e-3}]
    return torch.optim.NAdam(groups, lr=3e-3, decoupled_weight_decay=True), None
