"""Which columns of a dataset a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from drivetrain.data.collate import LABEL_COLUMNS


def signature_columns(model: Any, label_names: Sequence[str]) -> list[str]:
    """The arguments of `model.forward`, then the names that labels may have."""
    columns = list(inspect.signature(model.forward).parameters)
    return columns + [name for name in (*LABEL_COLUMNS, *label_names) if name not in columns]


def is_table(dataset: Any) -> bool:
    """Whether it can lose columns by itself, as a `datasets.Dataset` can."""
    names = getattr(dataset, "column_names", None)
    return isinstance(names, (list, tuple)) and hasattr(dataset, "remove_columns")
