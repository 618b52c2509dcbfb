"""Rows printed as they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from drivetrain import PrinterCallback, ProgressCallback, Trainer, TrainingArguments


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_argument_chooses_who_speaks(
    disable_tqdm: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [{"x": torch.ones(4), "labels": i % 2} for i in range(32)]
    args = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        logging_steps=2,
        disable_tqdm=disable_tqdm,
        report_to="none",
        use_cpu=True,
        evaluation_strategy="epoch",
        save_strategy="no",
    )
    trainer = Trainer(Net(), args, train_dataset=data, eval_dataset=data)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    wanted, other = (
        (PrinterCallback, ProgressCallback) if disable_tqdm else (ProgressCallback, PrinterCallback)
    )
    assert kinds[-1] is wanted  # after the others, as documented
    assert other not in kinds
    trainer.train()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    if not disable_tqdm:
        assert printed == []
        return
    rows = [ast.literal_eval(line) for line in printed]
    assert rows == [
        {name: value for name, value in row.items() if name not in ("step", "total_flos")}
        for row in trainer.state.log_history
    ]
    assert len(rows) == 4
    assert "total_flos" in trainer.state.log_history[-1]
