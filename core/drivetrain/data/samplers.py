"""In which order rows are seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import IterableDataset, RandomSampler, Sampler, SequentialSampler

from drivetrain.errors import ConfigurationError


def has_length(dataset: Any) -> bool:
    """Whether `len(dataset)` can be asked. A length that is there but None or unknown raises TypeError."""
    try:
        return len(dataset) is not None
    except (TypeError, NotImplementedError, AttributeError):
        return False


def epoch_seed(data_seed: int, epoch: int) -> int:
    """The seed of an epoch's order, a function of `data_seed` and the epoch alone."""
    digest = hashlib.blake2b(f"{data_seed},{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


class SeededRandomSampler(Sampler[int]):
    """A random order that depends on `seed` and the epoch, and draws nothing from the global generator."""

    def __init__(self, data_source: Sized, seed: int) -> None:
        self.data_source = data_source
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch, counted from 0."""
        self.epoch = epoch

    def order(self) -> torch.Tensor:
        """The indices of the epoch's rows, in their order."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return torch.randperm(len(self.data_source), generator=generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return len(self.data_source)


def length_grouped_order(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Random batches of like lengths, the longest row first, so that what runs out of memory does so at once.

    A random permutation is cut into stretches of some (at most 50) batches, each stretch sorted by falling
    length. Stretches are such that there are at least four of them where the data suffice.

    Args:
        lengths: of each row.
        batch_size: rows of an update.
        generator: source of the permutation; the global one if None.
    """
    batches_a_stretch = max(min(len(lengths) // (batch_size * 4), 50), 1)
    rows = batches_a_stretch * batch_size
    permutation: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    heads: list[int] = []
    for start in range(0, len(permutation), rows):
        heads.append(start)
        order += sorted(permutation[start : start + rows], key=lengths.__getitem__, reverse=True)
    if order:
        # The first of the longest heads changes places with the first row.
        longest = max(heads, key=lambda position: lengths[order[position]])
        order[0], order[longest] = order[longest], order[0]
    return order


class LengthGroupedSampler(Sampler[int]):
    """Batches of like lengths, see `length_grouped_order`.

    Args:
        batch_size: rows of an update.
        dataset: rows are mappings; their lengths are those of column `model_input_name`.
        lengths: of each row; counted from the dataset if None, which reads it once.
        model_input_name: "input_ids" if None.
        generator: source of the order; the global one if None.
        seed: with it the order depends on the seed and the epoch alone.

    Raises:
        ConfigurationError: lengths are neither given nor to be found.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Any = None,
        lengths: Any = None,
        model_input_name: str | None = None,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.generator = generator
        self.seed = seed
        self.epoch = 0
        if lengths is None:
            lengths = _lengths(dataset, model_input_name or "input_ids")
        elif isinstance(lengths, torch.Tensor):
            lengths = lengths.tolist()
        self.lengths: list[int] = list(lengths)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch where there is a seed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator
        if self.seed is not None:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return iter(length_grouped_order(self.lengths, self.batch_size, generator))


def _lengths(dataset: Any, name: str) -> list[int]:
    if dataset is None:
        raise ConfigurationError("LengthGroupedSampler needs a dataset or lengths: give one of them.")
    row = dataset[0]
    if not hasattr(row, "keys") or name not in row:
        raise ConfigurationError(
            f"group_by_length=True finds no column {name!r} in the rows: name a column of lengths "
            "by length_column_name, or set group_by_length=False."
        )
    return [len(dataset[index][name]) for index in range(len(dataset))]


def is_iterable_style(dataset: Any) -> bool:
    """Whether the dataset gives rows in its own order."""
    return isinstance(dataset, IterableDataset)


def train_sampler(
    dataset: Any, args: Any, processing_class: Any = None, rows: int | None = None
) -> Sampler[int] | None:
    """The order of the training set; None for a dataset that brings its own.

    Args:
        dataset: before its columns are dropped, since the column of lengths may be one of them.
        args: `group_by_length`, `length_column_name`, `data_seed`, batch size and accumulation are read.
        processing_class: a tokenizer; lengths are those of the first of its `model_input_names`.
        rows: of an update over all processes; by default as the arguments say.

    Raises:
        ConfigurationError: the dataset is empty, `group_by_length` finds no lengths, or no column has the name that
            `length_column_name` says.
    """
    if is_iterable_style(dataset) or not has_length(dataset):
        return None
    if len(dataset) == 0:
        raise ConfigurationError("The training dataset is empty: give train_dataset at least one row.")
    if args.group_by_length:
        lengths, column = None, args.length_column_name
        if column in (getattr(dataset, "column_names", None) or ()):
            lengths = dataset[column]
        elif column not in (None, "length"):  # somebody's own choice; the usual name is one that may be there
            lengths = _column(dataset, column)
        names = getattr(processing_class, "model_input_names", None)
        if rows is None:
            rows = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        return LengthGroupedSampler(rows, dataset, lengths, names[0] if names else None, seed=args.data_seed)
    if args.data_seed is not None:
        return SeededRandomSampler(dataset, args.data_seed)
    return RandomSampler(dataset)


def _column(dataset: Any, name: str) -> list[int]:
    """The lengths that each row has under a name."""
    row = dataset[0]
    if not hasattr(row, "keys") or name not in row:
        found = (
            f"they have {', '.join(map(str, row.keys()))}" if hasattr(row, "keys") else "they are no dicts"
        )
        raise ConfigurationError(
            f"length_column_name={name!r} is no column of the training rows: {found}. Name one of lengths, or leave it"
            " out, and lengths are measured."
        )
    return [int(dataset[index][name]) for index in range(len(dataset))]


def eval_sampler(dataset: Any, args: Any = None) -> Sampler[int] | None:
    """Rows in their order; None for a dataset that brings its own."""
    if is_iterable_style(dataset) or not has_length(dataset):
        return None
    return SequentialSampler(dataset)
