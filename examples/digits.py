"""Handwritten digits of 8 by 8 pixels: a small convolutional network. `digits.toml` trains it."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, random_split


class Digits(Dataset[dict[str, Tensor]]):
    """Rows of `pixels`, (1, 8, 8) between 0 and 1, and `labels`, the digit."""

    def __init__(self) -> None:
        digits = load_digits()
        self.pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        self.labels = torch.tensor(digits.target)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "labels": self.labels[index]}


class ConvNet(nn.Module):
    """Two convolutions, one pooling, one hidden layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 4 * 4, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, 10),
        )

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(pixels)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def model(width: int = 24, dropout: float = 0.2) -> nn.Module:
    # Images this small gain nothing from a second thread, and lose a lot of time to it where the cores are shared.
    torch.set_num_threads(1)
    return ConvNet(width, dropout)


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of rows whose largest logit is at the label."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def data(held_out: int = 360, split_seed: int = 0) -> dict[str, Any]:
    """The digits, of which `held_out` are kept for evaluation: chosen at random, the same ones at every run."""
    rows = Digits()
    train, held = random_split(
        rows, [len(rows) - held_out, held_out], torch.Generator().manual_seed(split_seed)
    )
    return {"train": train, "eval": held, "compute_metrics": accuracy}
