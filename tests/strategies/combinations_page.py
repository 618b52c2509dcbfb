"""The table of combinations, for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Callable

from strategies.cells import ANY_LENGTH, FACTORS, REQUIRED, name_of, refusals
from strategies.combining import Cell, Combinations
from strategies.comparing import TOLERANCE
from strategies.covering import pairs
from strategies.tables import Grid, markdown

PAGE = """# What goes with what

Every strategy with every precision, accumulation, clipping, gradient checkpointing, optimizer, and with torch.compile:
{cells} combinations on CPUs, of which {trained} train as one process does and {refused} are refused before the first step.
This page is what the command prints:

```sh
nox -s strategies -- --combinations docs/strategies/combinations.md
```

- **In full**: under every strategy {full} combinations of fp32 and bf16, accumulation, clipping and gradient checkpointing.
- **In pairs**: optimizers and torch.compile are dealt out over these, so that any two values of two columns stand together
  in some row, as far as they can: {pairs} pairs.
- **Equal** means that the loss of every micro-batch, the gradient's norm at every update, learning rates and final weights
  are those of one process with the same settings, neither compiled nor recomputed: within {fp32:.0e} in fp32, and within
  {bf16:.0e} in bf16 and for Muon, which orthogonalises its updates in bf16 whatever the weights are. A bf16 run that gives
  what fp32 gives is a failure.
- **Real** means that on every rank the engine's and the optimizer's class are what was asked for, that graphs were compiled
  and blocks computed again where that was asked for and nowhere else, and that the model comes back without either.
- **Refused** means one sentence on every rank, before the first micro-batch, that names both sides and the cure. What a
  refused row shows has one reason: no combination is refused only because it stood beside another that cannot be.

Accumulation `3+1` is three micro-batches an update with one left over at the end of an epoch, which goes on into the next;
`3` fits. `handed in` is an optimizer that the script built itself, a NAdam with two groups. fp16 needs a device that has it.
Compiled are batches of one length and of two sizes; under {lengths} in rows of `3+1` batches of any length.

Each strategy's launch ends with a run in which one rank fails in the middle of an update: it speaks first, and the other
ends with a sentence that names it.
"""

SHORT = {"aot_eager": "compiled", "handed in": "handed in"}


def grids(combinations: Combinations) -> list[Grid]:
    """Two summaries and the reasons."""
    strategies = list(dict.fromkeys(cell.row["strategy"] for cell in combinations.cells.values()))
    settings = [(factor, value) for factor in (*REQUIRED, "compile") for value in FACTORS[factor]]
    return [
        _summary(combinations, strategies, "By setting", settings, _heading),
        _summary(
            combinations,
            strategies,
            "By optimizer",
            [("optimizer", value) for value in FACTORS["optimizer"]],
            lambda factor, value: value.replace("_", " "),
        ),
        _reasons(combinations),
    ]


def _heading(factor: str, value: str) -> str:
    words = {"on": {"clipping": "clip", "checkpointing": "ckpt"}, "off": {"clipping": "no clip"}}
    plain = {"checkpointing": "no ckpt", "compile": "eager"}
    if factor == "accumulation":
        return f"acc {value}"
    if value == "off":
        return words["off"].get(factor) or plain[factor]
    return words.get(value, {}).get(factor) or SHORT.get(value, value)


def _summary(
    combinations: Combinations,
    strategies: list[str],
    title: str,
    columns: list[tuple[str, str]],
    heading: Callable[[str, str], str],
) -> Grid:
    rows = []
    for strategy in strategies:
        mine = [cell for cell in combinations.cells.values() if cell.row["strategy"] == strategy]
        rows.append(
            [strategy, *(_worst([c for c in mine if c.row[factor] == value]) for factor, value in columns)]
        )
    return Grid(
        f"Combinations: {title[0].lower()}{title[1:]}",
        ["strategy", *(f">{heading(factor, value)}" for factor, value in columns)],
        rows,
        "The largest difference of all that train; refused where none of them can.",
    )


def _worst(cells: list[Cell]) -> str:
    failed = sum(bool(cell.wrong) for cell in cells)
    if failed:
        return f"!{failed} of {len(cells)} FAIL"
    trained = [cell for cell in cells if not cell.refused]
    if not trained:
        return "refused" if cells else "-"
    return power(max(cell.difference for cell in trained))


def power(value: float) -> str:
    """In four characters."""
    return "=" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _reasons(combinations: Combinations) -> Grid:
    found: dict[str, list[Cell]] = {}
    for cell in combinations.cells.values():
        if cell.refused:
            found.setdefault(cell.refused, []).append(cell)
    rows = [
        [str(len(cells)), ", ".join(dict.fromkeys(cell.row["strategy"] for cell in cells)), reason]
        for reason, cells in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    return Grid(
        "Combinations that are refused",
        [">cells", "strategy", "reason"],
        rows,
        f"{sum(len(cells) for cells in found.values())} cells, with {len(found)} reasons.",
    )


def _of_strategy(strategy: str, cells: list[Cell]) -> Grid:
    columns = [factor for factor in FACTORS if factor != "strategy"]
    rows = [
        [*(SHORT.get(cell.row[factor], cell.row[factor]) for factor in columns), _end(cell)] for cell in cells
    ]
    return Grid(strategy, [*columns, ">difference"], rows)


def _end(cell: Cell) -> str:
    if cell.wrong:
        return "!" + cell.wrong[0]
    return "refused" if cell.refused else power(cell.difference)


def page(combinations: Combinations) -> str:
    """The page: summaries, reasons, and every cell."""
    cells = list(combinations.cells.values())
    refused = sum(bool(cell.refused) for cell in cells)
    head = PAGE.format(
        cells=len(cells),
        trained=sum(not cell.refused and not cell.wrong for cell in cells),
        refused=refused,
        full=len({name_of(c.row | {"optimizer": "", "compile": ""}) for c in cells if not refusals(c.row)})
        // len({cell.row["strategy"] for cell in cells}),
        pairs=len(pairs(FACTORS)),
        lengths=", ".join(ANY_LENGTH),
        **TOLERANCE,
    )
    parts = [head, *map(markdown, grids(combinations)), "## Every combination\n"]
    for strategy in dict.fromkeys(cell.row["strategy"] for cell in cells):
        mine = [cell for cell in cells if cell.row["strategy"] == strategy]
        parts.append("#" + markdown(_of_strategy(strategy, mine)))
    return "\n".join(parts)
