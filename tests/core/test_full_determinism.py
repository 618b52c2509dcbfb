"""full_determinism: the same bits twice, in one process and in two, and the process as it was afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import Toy, rows, trainer

from drivetrain import hookimpl

SCRIPT = """
import hashlib, json, sys, torch
from support.toy import Toy, accuracy, rows, trainer

def run(folder):
    torch.manual_seed(0)
    made = trainer(folder, model=Toy(0.2), data=rows(40), full_determinism=True, max_steps=6, logging_steps=1,
                   evaluation_strategy="steps", eval_steps=3, compute_metrics=accuracy, save_strategy="no")
    made.train()
    digest = hashlib.sha256()
    for tensor in made.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    digest.update(made.predict(rows(11)).predictions.tobytes())
    losses = [row[key] for row in made.state.log_history for key in ("loss", "eval_loss") if key in row]
    return digest.hexdigest(), losses

print(json.dumps([run(sys.argv[1] + "/one"), run(sys.argv[1] + "/two")]))
"""


def test_two_processes_and_two_runs_in_each_give_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[1])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / str(number))],
            stdout=subprocess.PIPE, text=True, env={**environment, "PYTHONHASHSEED": str(number)},
        )
        for number in range(2)
    ]  # fmt: skip
    found = []
    for process in started:
        printed, _ = process.communicate(timeout=280)
        assert process.returncode == 0
        found += json.loads(printed.splitlines()[-1])
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0][1]) == 8


class Looks:
    """Notes torch's settings while a run is under way."""

    name = "looks"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.seen.append(settings())

    @hookimpl
    def on_prediction_step(self, run: Any) -> None:
        self.seen.append(settings())


def settings() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_it_is_on_while_a_run_is_under_way_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    looks = Looks()
    made = trainer(
        tmp_path, full_determinism=True, max_steps=1, save_strategy="no", data=rows(8), plugins=[looks]
    )
    assert settings() == before
    made.train()
    made.evaluate()
    assert looks.seen == [(True, True, False, ":4096:8")] * 2
    assert settings() == before


class Pools(Toy):
    """With an operation that torch has no deterministic form of."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        torch.nn.functional.max_unpool1d(torch.ones(1, 1, 2), torch.tensor([[[0, 2]]]), 2)
        return super().forward(x, labels)


def test_what_has_no_deterministic_form_is_named_and_settings_are_put_back(tmp_path: Path) -> None:
    before = settings()
    made = trainer(
        tmp_path, model=Pools(), full_determinism=True, max_steps=1, data=rows(8), save_strategy="no"
    )
    with pytest.raises(RuntimeError, match=r"max_unpooling2d.* does not have a deterministic implementation"):
        made.train()
    assert settings() == before
