"""`trainer.accelerator`, the bridge for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.launch import torchrun
from support.toy import trainer

SCRIPT = """
import sys
import torch
from support.toy import trainer

made = trainer(sys.argv[1], max_steps=2)
accelerator = made.accelerator
made.train()
made.is_in_train = False
with made._evaluating():
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    assert accelerator.is_main_process == (rank == 0)
    assert accelerator.gather(torch.tensor([rank])).tolist() == [0, 1]
    assert accelerator.gather(torch.tensor(float(rank))).tolist() == [0.0, 1.0]
    uneven = accelerator.gather_for_metrics({"x": torch.full((2 + rank, 3), rank)})
    assert uneven["x"][:, 0].tolist() == [0, 0, 1, 1, 1]
accelerator.wait_for_everyone()
accelerator.print("RANK", rank)
"""


def test_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(tmp_path, gradient_accumulation_steps=3)
    accelerator = made.accelerator
    assert accelerator is made.accelerator
    assert accelerator.device == torch.device("cpu")
    assert (accelerator.num_processes, accelerator.process_index, accelerator.local_process_index) == (
        1,
        0,
        0,
    )
    assert accelerator.is_main_process
    assert accelerator.is_local_main_process
    accelerator.wait_for_everyone()
    accelerator.print("hello")
    assert capsys.readouterr().out == "hello\n"
    tensor = torch.arange(3)
    assert accelerator.gather(tensor) is tensor
    assert accelerator.gather_for_metrics((tensor, tensor)) == (tensor, tensor)
    assert accelerator.prepare(made.model) is made.model
    assert accelerator.prepare(1, 2) == (1, 2)
    assert accelerator.unwrap_model(made.model) is made.model
    other = torch.nn.Linear(1, 1)
    assert accelerator.unwrap_model(other) is other


def test_what_it_has_not_it_says(tmp_path: Path) -> None:
    accelerator = trainer(tmp_path).accelerator
    with pytest.raises(
        AttributeError, match=r"trainer.accelerator has no 'clip_grad_value_': .* It offers: device, "
    ):
        accelerator.clip_grad_value_  # noqa: B018
    with pytest.raises(RuntimeError, match="no training is under way"):
        accelerator.backward(torch.zeros(()))


def test_backward_takes_the_loss_alone(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes the loss alone, not retain_graph"):
        trainer(tmp_path).accelerator.backward(torch.zeros(()), retain_graph=True)


def test_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert "RANK 0" in torchrun(script, str(tmp_path / "out"))
