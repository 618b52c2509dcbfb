"""past_index: what a batch leaves is fed to the next as `mems`, and every pass begins without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.toy import trainer

from drivetrain import Trainer


class Recurrent(torch.nn.Module):
    """Adds up what it has seen: its memory is the sum of all rows before."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.given: list[float | None] = []

    def forward(self, x: torch.Tensor, labels: Any = None, mems: Any = None) -> Any:
        self.given.append(None if mems is None else float(mems))
        total = x.sum() + (0 if mems is None else mems)
        logits = self.weight * (x + total)
        new = total.detach()
        return (logits, new) if labels is None else (((logits - labels) ** 2).mean(), logits, new)


ROWS = [{"x": float(i + 1), "labels": 0.0} for i in range(6)]  # 3, 7, 11 in batches of two


def made(folder: Path, **values: Any) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.0,
        "data": ROWS,
        "eval_dataset": ROWS,
    }
    return trainer(folder, model=Recurrent(), cls=InOrder, **{**settings, **values})


class InOrder(Trainer):
    """Takes the rows as they come."""

    def _get_train_sampler(self) -> Any:
        return torch.utils.data.SequentialSampler(ROWS)


def test_training_goes_on_with_it_and_each_epoch_begins_without(tmp_path: Path) -> None:
    one = made(tmp_path, past_index=2)
    one.train()
    assert one.model.given == [None, 3, 10, None, 3, 10]


def test_without_it_nothing_is_fed(tmp_path: Path) -> None:
    one = made(tmp_path)
    one.train()
    one.evaluate()
    assert set(one.model.given) == {None}


def test_an_evaluation_has_a_memory_of_its_own_and_leaves_that_of_training(tmp_path: Path) -> None:
    one = made(tmp_path, past_index=2, num_train_epochs=1, evaluation_strategy="steps", eval_steps=2)
    one.train()
    assert one.model.given == [None, 3, *[None, 3, 10], 10]


def test_evaluations_and_predictions_begin_without(tmp_path: Path) -> None:
    one = made(tmp_path, past_index=2)
    first = one.evaluate()["eval_loss"]
    assert one.evaluate()["eval_loss"] == first
    assert one.model.given == [None, 3, 10] * 2
    one.model.given.clear()
    # Without labels there is no loss before it.
    output = one.predict([{"x": row["x"]} for row in ROWS])
    assert one.model.given == [None, 3, 10]
    assert output.predictions[0].tolist() == [4, 5, 13, 14, 26, 27]
