"""Which columns of a dataset a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from drivetrain.data.collate import LABEL_COLUMNS, RemoveColumnsCollator, report_dropped


def signature_columns(model: Any, label_names: Sequence[str]) -> list[str]:
    """The arguments of `model.forward`, then the names that labels may have."""
    columns = list(inspect.signature(model.forward).parameters)
    return columns + [name for name in (*LABEL_COLUMNS, *label_names) if name not in columns]


def drop_columns(
    dataset: Any,
    collate_fn: Callable[[Any], Any],
    *,
    model: Any,
    label_names: Sequence[str],
    args: Any,
    description: str,
) -> tuple[Any, Callable[[Any], Any]]:
    """Drops the columns that `model.forward` does not take, unless `args.remove_unused_columns` is False.

    A `datasets.Dataset` (known by `column_names` and `remove_columns`) loses them; any other dataset is left
    alone, and the collator is wrapped.

    Returns:
        The dataset and the collator to load it with.

    Raises:
        ConfigurationError: nothing but labels would remain (for a wrapped collator, at the first batch).
    """
    if not args.remove_unused_columns:
        return dataset, collate_fn
    columns = signature_columns(model, label_names)
    name = type(model).__name__
    labels = {*LABEL_COLUMNS, *label_names}
    names = getattr(dataset, "column_names", None)
    if isinstance(names, (list, tuple)) and hasattr(dataset, "remove_columns"):
        dropped = report_dropped(names, columns, labels, name, description)
        return (dataset.remove_columns(dropped) if dropped else dataset), collate_fn
    return dataset, RemoveColumnsCollator(
        collate_fn, columns, labels=labels, model_name=name, description=description
    )
