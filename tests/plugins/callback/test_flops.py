"""`flops`: what torch counts of an update, against the products that are done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import rows, trainer

from drivetrain import ConfigurationError
from drivetrain_plugins.callback.peak_flops import peak

# Toy: 8 to 16 to 3, rows of 8. Twice the multiplications; the backward does each product twice, but for the first
# layer, whose input has no gradient.
FORWARD = 2 * 8 * (8 * 16 + 16 * 3)
UPDATE = FORWARD + 2 * 8 * (8 * 16) + 2 * 2 * 8 * (16 * 3)

VALUES: dict[str, Any] = {"save_strategy": "no", "data": rows(400)}


def test_what_is_counted_is_what_is_done(tmp_path: Path) -> None:
    for accumulation in (1, 3):
        made = trainer(
            tmp_path,
            max_steps=8,
            gradient_accumulation_steps=accumulation,
            plugins={"flops": {"every": 3, "peak": 1e9}},
            **VALUES,
        )
        metrics = made.train().metrics
        assert metrics["train_flops_per_update"] == UPDATE * accumulation
        assert metrics["train_flops_per_second"] > 0
        assert metrics["train_flops_of_peak"] == pytest.approx(metrics["train_flops_per_second"] / 1e9)
        assert made.state.log_history[-1]["train_flops_per_update"] == UPDATE * accumulation


def test_neither_evaluations_nor_the_updates_between_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    entered: list[int] = []
    enter = FlopCounterMode.__enter__

    def counted(self: Any) -> Any:
        entered.append(made.state.global_step + 1)
        return enter(self)

    monkeypatch.setattr(FlopCounterMode, "__enter__", counted)
    made = trainer(
        tmp_path,
        max_steps=9,
        evaluation_strategy="steps",
        eval_steps=1,
        plugins={"flops": {"every": 4}},
        **VALUES,
    )
    metrics = made.train().metrics
    assert entered == [2, 6]
    assert metrics["train_flops_per_update"] == UPDATE
    assert "train_flops_of_peak" not in metrics  # nobody knows the peak of this CPU


def test_recomputation_is_counted(tmp_path: Path) -> None:
    class Recomputes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            from torch.utils.checkpoint import checkpoint

            hidden = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=False)
            return {"loss": torch.nn.functional.cross_entropy(self.second(hidden), labels)}

    made = trainer(tmp_path, model=Recomputes(), max_steps=4, plugins={"flops": {}}, **VALUES)
    assert made.train().metrics["train_flops_per_update"] == UPDATE + 2 * 8 * (8 * 16)


def test_a_run_that_is_too_short_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(tmp_path, max_steps=2, plugins={"flops": {}}, **VALUES)
    assert not any("flops_per" in key for key in made.train().metrics)
    assert "flops: the run was too short; the second update is counted and the third timed." in caplog.text


def test_the_counter_is_taken_off_after_an_error(tmp_path: Path) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as stack

    data = rows(80)
    data[9]["labels"] = 77
    made = trainer(tmp_path, max_steps=4, plugins={"flops": {}}, **{**VALUES, "data": InOrder(data)})
    with pytest.raises(IndexError):
        made.train()
    assert stack() == []


class InOrder(torch.utils.data.IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="every=1 must be at least 2: an update that is counted is not timed"
    ):
        trainer(tmp_path, plugins={"flops": {"every": 1}})


def test_the_peak_of_a_device_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such device is here: the name is what CUDA gives."""
    assert peak(torch.device("cpu"), torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak(torch.device("cuda", 0), torch.bfloat16) == 989e12
    assert peak(torch.device("cuda", 0), None) in (494e12, 67e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak(torch.device("cuda", 0), torch.float16) == 756e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something else")
    assert peak(torch.device("cuda", 0), torch.float16) is None
