"""`skip_memory_metrics=False`: what is measured, against memory that is really taken and given back."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, rows, trainer

from drivetrain import Trainer
from drivetrain_plugins.callback import memory_metrics
from drivetrain_plugins.callback.memory_metrics import HostMemory, resident

MB = 2**20
VALUES: dict[str, Any] = {
    "skip_memory_metrics": False,
    "max_steps": 2,
    "save_strategy": "no",
    "logging_steps": 1,
}


def taken(mb: int) -> torch.Tensor:
    """Memory of the system's, every page of it in use; malloc may have some at hand that counts already."""
    memory = mmap.mmap(-1, mb * MB)
    for page in range(0, mb * MB, mmap.PAGESIZE):
        memory[page] = 1
    return torch.frombuffer(memory, dtype=torch.uint8)


class Takes(Toy):
    """Takes memory in its forward: some for good, some for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.keep, self.moment = 0, 0
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.keep:
            self.kept.append(taken(self.keep))
            self.keep = 0
        if self.moment:
            for _ in range(2):
                taken(self.moment)
        return super().forward(x, labels)


def test_each_stage_tells_what_it_took(tmp_path: Path) -> None:
    """48 MB for good and 96 for a moment; the figures of the making come with the first stage, and once."""
    trainer(tmp_path, **VALUES).train()  # what the first update of a process imports
    gc.collect()  # what earlier tests have left
    model = Takes()
    made = trainer(tmp_path, model=model, **VALUES)
    model.keep, model.moment = 48, 96
    trained = made.train().metrics
    assert 48 * MB <= trained["train_mem_cpu_alloc_delta"] < 80 * MB
    assert 90 * MB <= trained["train_mem_cpu_peaked_delta"] < 130 * MB
    assert trained["before_init_mem_cpu"] > 50 * MB
    assert {"init_mem_cpu_alloc_delta", "init_mem_cpu_peaked_delta"} <= trained.keys()
    assert not any("gpu" in key for key in trained)
    logged = made.state.log_history[-1]
    assert logged["train_mem_cpu_peaked_delta"] == trained["train_mem_cpu_peaked_delta"]
    model.moment = 64
    evaluated = made.evaluate()
    assert abs(evaluated["eval_mem_cpu_alloc_delta"]) < 20 * MB
    assert 60 * MB <= evaluated["eval_mem_cpu_peaked_delta"] < 90 * MB
    assert not any(key.startswith(("init_mem", "before_init", "train_mem")) for key in evaluated)
    model.moment = 0
    model.keep = 32
    predicted = made.predict(rows(8)).metrics
    assert predicted is not None
    assert 32 * MB <= predicted["test_mem_cpu_alloc_delta"] < 50 * MB


def test_the_making_of_the_trainer(tmp_path: Path) -> None:
    def build() -> Toy:
        model = Takes()
        model.register_buffer("large", taken(40))
        taken(80)
        return model

    gc.collect()
    made = trainer(tmp_path, model_init=build, **VALUES)
    evaluated = made.evaluate()
    assert 40 * MB <= evaluated["init_mem_cpu_alloc_delta"] < 70 * MB
    assert 70 * MB <= evaluated["init_mem_cpu_peaked_delta"] < 110 * MB


def test_an_evaluation_in_training_is_a_part_of_it(tmp_path: Path) -> None:
    made = trainer(tmp_path, evaluation_strategy="steps", eval_steps=1, **VALUES)
    metrics = made.train().metrics
    assert "train_mem_cpu_alloc_delta" in metrics
    assert not any("eval_mem" in key for row in made.state.log_history for key in row)
    assert "eval_mem_cpu_alloc_delta" in made.evaluate()


def test_after_an_error_the_next_stage_is_measured(tmp_path: Path) -> None:
    data = rows(16)
    data[9]["x"] = torch.zeros(7)
    made = trainer(tmp_path, data=data, **VALUES)
    with pytest.raises(Exception, match="cannot be stacked"):
        made.train()
    made.eval_dataset = rows(8)
    assert "eval_mem_cpu_alloc_delta" in made.evaluate()


def test_it_is_left_out_by_default(tmp_path: Path) -> None:
    made = trainer(tmp_path, **{**VALUES, "skip_memory_metrics": True})
    assert not any("_mem_" in key for key in (*made.train().metrics, *made.evaluate()))


def test_a_copied_evaluate_is_measured(tmp_path: Path) -> None:
    """A subclass that has 4.34.0's own lines."""

    class Copied(Trainer):
        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> Any:
            self._memory_tracker.start()
            taken(64)
            output = self.evaluation_loop(self.get_eval_dataloader(eval_dataset), "Evaluation")
            self._memory_tracker.stop_and_update_metrics(output.metrics)
            return output.metrics

    made = trainer(tmp_path, cls=Copied, **VALUES)
    assert made.evaluate()["eval_mem_cpu_peaked_delta"] > 50 * MB


def test_where_the_system_does_not_forget_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread looks; it finds a peak that lasts, and is gone afterwards."""
    import threading
    import time

    monkeypatch.setattr(memory_metrics, "_CLEAR", tmp_path / "not there" / "clear_refs")
    memory = HostMemory()
    before = memory.begin()
    held = taken(64)
    deadline = time.monotonic() + 60
    while memory._peak < before + 60 * MB and time.monotonic() < deadline:
        time.sleep(0.01)
    del held
    assert memory.end() - before > 60 * MB
    while any(t.name == "drivetrain-memory" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "drivetrain-memory" for thread in threading.enumerate())
    monkeypatch.setattr(memory_metrics, "_STATUS", tmp_path / "not there either")
    assert abs(resident() - before) < 64 * MB  # psutil's
