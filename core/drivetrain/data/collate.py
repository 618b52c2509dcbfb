"""From a list of rows to a batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from drivetrain.errors import ConfigurationError

logger = logging.getLogger("drivetrain")

LABEL_COLUMNS = ("label", "label_ids")


def default_data_collator(features: Sequence[Any], return_tensors: str = "pt") -> Any:
    """Stacks rows into a batch, column by column; nothing is padded.

    Rows are mappings (or dataclasses and other objects with attributes); the first row decides which columns
    there are. `label` (one number a row) and `label_ids` (a list or an array a row) become `labels`: int64
    where they hold whole numbers, else float32. Columns that hold None or text are left out. Rows that are
    tuples, lists, tensors, arrays or numbers go to torch's `default_collate`.

    Args:
        features: the rows, at least one.
        return_tensors: only "pt" is known.

    Returns:
        A dict of tensors, each of shape (rows, ...).

    Raises:
        ConfigurationError: the values of a column differ in length.
    """
    if return_tensors != "pt":
        raise ConfigurationError(
            f"return_tensors={return_tensors!r} is not made here. Use return_tensors='pt'."
        )
    return collate_columns(features, None)


def collate_columns(features: Sequence[Any], columns: Collection[str] | None) -> Any:
    """`default_data_collator`, of the named columns alone (None: of all)."""
    first = features[0]
    if type(first) is not dict and not _has_columns(first):
        if isinstance(first, (tuple, list, torch.Tensor, np.ndarray, np.generic, int, float, str, bytes)):
            return default_collate(list(features))
        features = [_attributes(feature) for feature in features]
        first = features[0]
    batch: dict[str, Any] = {}
    labels = _label_column(first, columns)
    if labels is not None:
        batch["labels"] = _labels(features, labels)
    for name, value in first.items():
        if value is None or name in LABEL_COLUMNS or isinstance(value, str):
            continue
        if columns is not None and name not in columns:
            continue
        try:
            if isinstance(value, torch.Tensor):
                batch[name] = torch.stack([feature[name] for feature in features])
            elif isinstance(value, np.ndarray):
                batch[name] = torch.from_numpy(np.stack([feature[name] for feature in features]))
            else:
                batch[name] = torch.tensor([feature[name] for feature in features])
        except (ValueError, RuntimeError) as error:
            raise _cannot_stack(name, error) from error
    return batch


def _has_columns(row: Any) -> bool:
    return isinstance(row, Mapping) or (hasattr(row, "keys") and hasattr(row, "items"))


def _attributes(row: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return dict(vars(row))


def _label_column(first: Any, columns: Collection[str] | None) -> str | None:
    """`label` goes before `label_ids`, as it always did."""
    for name in LABEL_COLUMNS:
        if name in first and first[name] is not None and (columns is None or name in columns):
            return name
    return None


def _labels(features: Sequence[Any], name: str) -> torch.Tensor:
    values = [feature[name] for feature in features]
    first = values[0]
    try:
        if isinstance(first, torch.Tensor) and (first.dim() > 0 or name == "label_ids"):
            return torch.stack(values)
        if isinstance(first, np.ndarray) and first.ndim > 0:
            stacked = torch.from_numpy(np.stack(values))
            return stacked.long() if not stacked.is_floating_point() else stacked.float()
        if isinstance(first, (torch.Tensor, np.ndarray)):
            values = [value.item() for value in values]
        return torch.tensor(values, dtype=torch.long if _is_whole(values[0]) else torch.float)
    except (ValueError, RuntimeError) as error:
        raise _cannot_stack(name, error) from error


def _is_whole(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.reshape(-1)[0].item()
    return isinstance(value, (int, np.integer, np.bool_))


def _cannot_stack(name: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The rows of a batch cannot be stacked in column {name!r} ({error}); "
        "pass a tokenizer or a data_collator that pads, or make the column's values alike."
    )


@dataclasses.dataclass
class DataCollatorWithPadding:
    """Pads the rows of a batch with the tokenizer's own `pad`.

    Args:
        tokenizer: anything with transformers' `pad` method.
        padding: True or "longest", "max_length", or False.
        max_length: the length for "max_length".
        pad_to_multiple_of: round the padded length up to a multiple of this.
        return_tensors: handed to `pad`.
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        """The padded batch; `label` and `label_ids` become `labels`."""
        batch = self.tokenizer.pad(
            features,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=self.return_tensors,
        )
        for name in LABEL_COLUMNS:
            if name in batch:
                batch["labels"] = batch[name]
                del batch[name]
        return batch


class RemoveColumnsCollator:
    """Leaves out the columns that the model does not take, then calls another collator.

    Args:
        data_collator: the collator that is given the remaining columns.
        columns: the names that may remain.
        model_name, description: name the model's class and the set ("training", "evaluation") in messages.

    Raises:
        ConfigurationError: at the first batch, where nothing but labels would remain.
    """

    def __init__(
        self,
        data_collator: Callable[[Any], Any],
        columns: Collection[str],
        *,
        labels: Collection[str] = (),
        model_name: str = "the model",
        description: str = "training",
    ) -> None:
        self.data_collator = data_collator
        self.columns = frozenset(columns)
        self.labels = frozenset(labels) | frozenset(LABEL_COLUMNS)
        self.model_name = model_name
        self.description = description
        self._checked = False
        # The default collator reads the columns of the first row alone, so nothing need be copied for it.
        self._is_default = data_collator is default_data_collator

    def __call__(self, features: Sequence[Any]) -> Any:
        """The batch of the columns that remain."""
        # What `__getitems__` of a dataset gives may be a whole batch: it is the collator's.
        is_rows = isinstance(features, (list, tuple)) and len(features) > 0
        if not is_rows or not isinstance(first := features[0], dict):
            return self.data_collator(features)
        if not self._checked:
            report_dropped(first, self.columns, self.labels, self.model_name, self.description)
            self._checked = True
        columns = self.columns
        if self._is_default:
            return collate_columns(features, columns)
        try:
            nothing_to_drop = all(map(columns.issuperset, features))  # a third of the time of a loop
        except TypeError:  # a row that is no dict, such as the None of a row that could not be read
            nothing_to_drop = False
        return self.data_collator(features if nothing_to_drop else [self._kept(row) for row in features])

    def _kept(self, row: Any) -> Any:
        if not isinstance(row, dict) or row.keys() <= self.columns:
            return row
        return {name: value for name, value in row.items() if name in self.columns}


def report_dropped(
    columns: Collection[str],
    kept: Collection[str],
    labels: Collection[str],
    model_name: str,
    description: str,
) -> list[str]:
    """Names in the log what is dropped of `columns`, and returns it.

    Raises:
        ConfigurationError: nothing but labels would remain.
    """
    dropped = sorted(name for name in columns if name not in kept)
    if dropped and not any(name in kept and name not in labels for name in columns):
        raise ConfigurationError(
            f"No column of the {description} set is an argument of {model_name}.forward "
            f"(there are: {', '.join(sorted(columns))}): rename them, or set remove_unused_columns=False."
        )
    if dropped:
        logger.info(
            "Columns of the %s set that %s.forward does not take are dropped: %s.",
            description,
            model_name,
            ", ".join(dropped),
        )
    return dropped
