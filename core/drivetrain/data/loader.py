"""The torch DataLoader of a dataset, as the arguments ask."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from drivetrain.data.samplers import has_length, is_iterable_style
from drivetrain.errors import ConfigurationError


def stand_apart(worker_id: int) -> None:
    """Puts a worker into a process group of its own.

    Ctrl-C, torchrun and `timeout` signal the run's whole group. A run that is told to leave takes its step to the end,
    for which it needs its workers, and ends them itself.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def seed_worker(worker_id: int) -> None:
    """Seeds Python, NumPy and torch in a training worker from the seed that torch gave it; `stand_apart` as well."""
    stand_apart(worker_id)
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_dataloader(
    dataset: Any,
    *,
    batch_size: int,
    collate_fn: Callable[[Any], Any],
    sampler: Sampler[int] | None,
    args: Any,
    train: bool,
) -> DataLoader[Any]:
    """A plain DataLoader of `batch_size` rows; `EpochIterator` deals its rows over the ranks.

    Args:
        dataset: map-style, or an `IterableDataset`.
        batch_size: rows that one rank takes at once.
        collate_fn: makes a batch of a list of rows.
        sampler: the order of a map-style dataset.
        args: `dataloader_drop_last` (for map-style sets), `dataloader_num_workers`, `dataloader_pin_memory`.
        train: training workers are seeded as well for Python and NumPy.

    Raises:
        ConfigurationError: the dataset is neither map-style with a length nor an `IterableDataset`.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "collate_fn": collate_fn,
        "num_workers": args.dataloader_num_workers,
        "worker_init_fn": stand_apart,
        # torch warns where there is nothing to pin for.
        "pin_memory": bool(args.dataloader_pin_memory) and torch.accelerator.is_available(),
    }
    if not is_iterable_style(dataset):
        if sampler is None and not has_length(dataset):
            raise ConfigurationError(
                f"A {type(dataset).__name__} has no length and cannot be read by index: give it __len__ and "
                "__getitem__, or derive it from torch.utils.data.IterableDataset."
            )
        options["sampler"] = sampler
        options["drop_last"] = args.dataloader_drop_last
        if train:
            options["worker_init_fn"] = seed_worker
    loader: Any = DataLoader(dataset, **options)
    loader.fetches_ahead = True
    return loader  # type: ignore[no-any-return]


def fetches_ahead(loader: Any) -> bool:
    """Whether a batch is fetched ahead: of loaders that `make_dataloader` made, without workers."""
    return bool(getattr(loader, "fetches_ahead", False)) and not loader.num_workers
