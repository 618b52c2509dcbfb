"""Weights that make the loss of an update the mean over its tokens, over accumulation and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from drivetrain.errors import ConfigurationError

IGNORED = -100


def count_targets(batch: Any, label_names: Sequence[str], shifted: bool) -> int:
    """Labels of a batch that count: those that are not -100.

    Args:
        batch: a mapping with labels, of shape (rows,) or (rows, tokens).
        label_names: where to look for them; the first that is there counts.
        shifted: the model predicts the next token, so that the first of each row has no prediction.

    Raises:
        ConfigurationError: the batch has no labels.
    """
    if isinstance(batch, Mapping):
        for name in label_names:
            labels = batch.get(name)
            if isinstance(labels, torch.Tensor):
                if shifted and labels.dim() > 1:
                    labels = labels[..., 1:]
                return int((labels != IGNORED).sum())
    raise ConfigurationError(
        "loss_reduction='tokens' counts the labels of a batch, and this batch has none; use 'micro_batches'."
    )


class TokenWeighted:
    """Hands out the micro-batches of one update after all of them are fetched, each with its share of the tokens.

    A micro-batch whose loss is the mean over its `n` tokens gets the weight `n * accumulation * W / N`, with `N`
    the tokens of the update on all `W` ranks: divided by the accumulation and averaged over the ranks, the losses
    of an update are then the mean over its tokens.

    An update that spans two epochs is the one exception: each of its parts is the mean over its own tokens, and
    the parts count by their number of micro-batches.

    Args:
        batches: the epoch's iterator.
        accumulation: micro-batches an update.
        done: micro-batches of the run that are done, which say where an update begins.
        count: tokens of a batch.
        total: sums a number over the ranks. A collective.
        world_size: number of ranks.
    """

    def __init__(
        self,
        batches: Any,
        *,
        accumulation: int,
        done: int,
        count: Callable[[Any], int],
        total: Callable[[int], int],
        world_size: int,
    ) -> None:
        self.batches = batches
        self.accumulation = accumulation
        self.done = done
        self.count = count
        self.total = total
        self.world_size = world_size
        self.weight = 1.0
        self.rows = 0

    def position(self) -> Any:
        """The position in the data; asked for between updates, when nothing is held back."""
        return self.batches.position()

    def position_here(self) -> Any:
        """The same as far as this rank knows it."""
        return self.batches.position_here()

    def close(self) -> None:
        """Ends the pass."""
        self.batches.close()

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.batches)
        while True:
            wanted = self.accumulation - self.done % self.accumulation
            group: list[tuple[Any, int, int]] = []
            while len(group) < wanted and (batch := next(iterator, None)) is not None:
                tokens = self.count(batch) if self.batches.weight else 0
                group.append((batch, tokens, self.batches.rows))
            if not group:
                return
            tokens_in_all = max(self.total(sum(tokens for _, tokens, _ in group)), 1)
            self.done += len(group)
            for batch, tokens, rows in group:
                self.weight = tokens * len(group) * self.world_size / tokens_in_all
                self.rows = rows
                yield batch
