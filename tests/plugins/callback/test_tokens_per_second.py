"""`include_tokens_per_second`: the tokens that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import trainer

from drivetrain import TrainerCallback


class Language(torch.nn.Module):
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 8)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.table(input_ids).mean(dim=(1, 2)).pow(2).mean() + 0.0 * labels.sum()}


class Decoder(Language):
    main_input_name = "tokens"

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return super().forward(tokens, labels)


def texts(count: int, name: str = "input_ids") -> list[dict[str, Any]]:
    """Every batch of four rows is as long as its number: 1, 2, 3, ..."""
    return [{name: torch.full((i // 4 + 1,), i % 50), "labels": 0} for i in range(count)]


class InOrder(torch.utils.data.IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def counted(folder: Path, data: Any, model: Any = None, resume: Any = None, **values: Any) -> float:
    made = trainer(
        folder,
        model=model or Language(),
        data=data,
        per_device_train_batch_size=4,
        include_tokens_per_second=True,
        **{"save_strategy": "no", **values},
    )
    metrics = made.train(resume_from_checkpoint=resume).metrics
    assert made.state.log_history[-1]["train_tokens_per_second"] == metrics["train_tokens_per_second"]
    return round(metrics["train_tokens_per_second"] * metrics["train_runtime"])


def test_what_is_trained_on_is_counted(tmp_path: Path) -> None:
    data = InOrder(texts(40))
    assert counted(tmp_path, data, max_steps=10) == pytest.approx(4 * 55, abs=1)
    assert counted(tmp_path, data, max_steps=2, gradient_accumulation_steps=3) == pytest.approx(4 * 21, abs=1)
    assert counted(tmp_path, InOrder(texts(40, "tokens")), Decoder(), max_steps=10) == pytest.approx(
        220, abs=1
    )


def test_an_evaluation_is_not(tmp_path: Path) -> None:
    values = {"evaluation_strategy": "steps", "eval_steps": 1, "eval_dataset": texts(4)}
    assert counted(tmp_path, InOrder(texts(40)), max_steps=4, **values) == pytest.approx(40, abs=1)


def test_what_was_trained_before_a_resume_is_not(tmp_path: Path) -> None:
    """4.34.0 divides the tokens of the whole run by the time of what was left of it."""
    data = InOrder(texts(40))
    counted(tmp_path, data, max_steps=10, save_strategy="steps", save_steps=8)
    left = counted(tmp_path, data, max_steps=10, resume=str(tmp_path / "checkpoint-8"))
    assert left == pytest.approx(4 * (9 + 10), abs=1)


def test_nothing_to_count_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(tmp_path, max_steps=2, save_strategy="no", include_tokens_per_second=True)
    assert made.train().metrics["train_tokens_per_second"] == 0
    assert "counted no token: the batches have no input_ids, and no 'input_ids'" in caplog.text


def test_no_row_is_read_for_it(tmp_path: Path) -> None:
    """4.34.0 reads all of the data once before it trains."""
    read: list[int] = []

    class Counting(InOrder):
        def __iter__(self) -> Any:
            for number, row in enumerate(self.rows):
                read.append(number)
                yield row

    class Before(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert not read

    counted(tmp_path, Counting(texts(40)), max_steps=2, callbacks=[Before()])
    assert len(read) <= 4 * 3


def test_each_row_of_the_log_has_the_tokens_of_its_own_steps(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Looks(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, run: Any = None, **more: Any
        ) -> None:
            if "loss" in logs:
                seen.append((run.figures["tokens_per_second"], run.figures["rows_per_second"]))

    made = trainer(
        tmp_path,
        model=Language(),
        data=InOrder(texts(24)),
        per_device_train_batch_size=4,
        include_tokens_per_second=True,
        save_strategy="no",
        max_steps=6,
        logging_steps=2,
    )
    made.add_callback(Looks())
    made.train()
    # Steps of 4 rows, as long as their number: 1 and 2 tokens, 3 and 4, 5 and 6.
    assert [tokens / rows for tokens, rows in seen] == pytest.approx([1.5, 3.5, 5.5])
