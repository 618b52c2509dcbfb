"""loss_reduction="tokens": an update under accumulation is the update of the whole batch, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import trainer

from drivetrain import ConfigurationError, Trainer, TrainingArguments


class Tagger(torch.nn.Module):
    """A class for each token; the loss is the mean over the tokens whose label is not -100."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.embedding(input_ids))
        return {
            "loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            "logits": logits,
        }


def ragged(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(count):
        ids = torch.randint(0, 11, (12,), generator=generator)
        labels = ids % 5
        labels[int(torch.randint(1, 12, (1,), generator=generator)) :] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def train(folder: Path, batch: int, accumulation: int, reduction: str) -> Trainer:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        loss_reduction=reduction,
        num_train_epochs=2,
        logging_steps=1,
        learning_rate=0.1,
        optim="sgd",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    made = Trainer(Tagger(), arguments, train_dataset=ragged(32))
    made.train()
    return made


def losses(made: Trainer) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def distance(one: Trainer, other: Trainer) -> float:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_accumulation_equals_the_whole_batch(tmp_path: Path) -> None:
    whole = train(tmp_path, 8, 1, "micro_batches")  # one micro-batch: the model's own mean over tokens
    parts = train(tmp_path, 2, 4, "tokens")
    assert distance(whole, parts) < 1e-6
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)


def test_the_default_is_the_mean_of_means_and_differs(tmp_path: Path) -> None:
    assert distance(train(tmp_path, 8, 1, "micro_batches"), train(tmp_path, 2, 4, "micro_batches")) > 1e-3


def test_a_batch_without_labels_is_named(tmp_path: Path) -> None:
    class Unlabelled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"loss": self.linear(x).mean()}

    made = trainer(
        tmp_path, model=Unlabelled(), data=[{"x": torch.ones(2)}] * 8, loss_reduction="tokens", max_steps=1
    )
    with pytest.raises(ConfigurationError, match="counts the labels of a batch, and this batch has none"):
        made.train()
