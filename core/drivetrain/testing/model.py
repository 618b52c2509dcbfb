"""A transformer small enough to train a hundred times, with all that strategies stumble over, and its data.

A tied weight, a frozen layer, a buffer that counts, one that no checkpoint holds, layers of 5 and of 7 rows,
normalisation, rows of different length. No gradient in it is zero in theory and noise in practice, which Adam would
blow up to whole steps: so keys have no bias. There is no dropout, and every row's loss is its own mean, so that no
row's share depends on which others are in its batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

WORDS, WIDTH, HIDDEN, CLASSES, LONGEST = 11, 16, 7, 5, 9
PADDING = -100

EVALUATED_ROWS = 25
"""Batches of 3, of 6, of 9 and of 12 all leave rows over."""


class Block(torch.nn.Module):
    """Attention of one head, and a layer of 7 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = torch.nn.LayerNorm(WIDTH)
        self.query = torch.nn.Linear(WIDTH, WIDTH)
        self.key = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = torch.nn.Linear(WIDTH, WIDTH)
        self.mix = torch.nn.Linear(WIDTH, WIDTH)
        self.before_layer = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Attends to what is no padding."""
        y = self.before_attention(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / WIDTH**0.5
        weights = scores.masked_fill(~real[:, None, :], -1e4).softmax(-1)
        x = x + self.mix(weights @ self.value(y))
        changed: torch.Tensor = x + self.down(functional.gelu(self.up(self.before_layer(x))))
        return changed


class Small(torch.nn.Module):
    """Names the word after each word, by the embedding itself, and a class of the whole row."""

    _no_split_modules = ("Block",)
    main_input_name = "words"
    places: torch.Tensor
    trained: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(WORDS, WIDTH)
        self.frozen = torch.nn.Linear(WIDTH, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.head = torch.nn.Linear(WIDTH, WORDS)
        self.classes = torch.nn.Linear(WIDTH, CLASSES)
        self.head.weight = self.embedding.weight
        self.frozen.requires_grad_(False)
        torch.nn.init.normal_(self.embedding.weight, std=0.3)
        places = torch.arange(LONGEST)[:, None] / 3.0 ** torch.arange(WIDTH)
        self.register_buffer("places", torch.sin(places), persistent=False)
        self.register_buffer("trained", torch.zeros((), dtype=torch.long))

    def forward(
        self, words: torch.Tensor, number: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The loss, where there are labels, and what `predict` gives back: words, classes, each row's number."""
        if self.training:
            self.trained += 1
        real = words >= 0
        x = self.embedding(words.clamp(min=0)) + self.places[: words.shape[1]]
        x = x + torch.tanh(self.frozen(x))
        for block in self.blocks:
            x = block(x, real)
        x = self.norm(x)
        lengths = real.sum(1)
        classes = self.classes((x * real[..., None]).sum(1) / lengths[:, None])
        logits = self.head(x)
        found = {}
        if labels is not None:
            each = functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), ignore_index=PADDING, reduction="none"
            )
            of_words = each.view_as(labels).sum(1) / lengths
            wanted = labels.clamp(min=0).sum(1) % CLASSES
            of_class = functional.cross_entropy(classes.float(), wanted, reduction="none")
            found["loss"] = (of_words + 0.5 * of_class).mean()
        # What is no word is what the gathering of rows of different length fills in, whatever the batch.
        logits = logits.masked_fill(~real[..., None], PADDING)
        return found | {"logits": logits, "classes": classes, "number": number}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of 4 to 9 words, each with its number."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = int(torch.randint(4, LONGEST + 1, (1,), generator=generator))
        words = torch.randint(0, WORDS, (length,), generator=generator)
        made.append({"words": words, "labels": (words * 3 + 1 + number % 2) % WORDS, "number": number})
    return made


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads to the longest of the batch; padding words are -1."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "words": pad([row["words"] for row in batch], batch_first=True, padding_value=-1),
        "labels": pad([row["labels"] for row in batch], batch_first=True, padding_value=PADDING),
        "number": torch.tensor([row["number"] for row in batch]),
    }


def build() -> Small:
    """The same model every time."""
    torch.manual_seed(0)
    return Small()
