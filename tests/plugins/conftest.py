"""A real Run for plugins that are asked for what they make, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.arguments import TrainingArguments
from drivetrain.callbacks import TrainerControl, TrainerState
from drivetrain.processes import Processes
from drivetrain.resolve import Plan
from drivetrain.run import Run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_run(model, max_steps=100, **arguments)`: a run on the CPU."""

    def make(model: torch.nn.Module | None = None, max_steps: int = 100, **arguments: Any) -> Run:
        args = TrainingArguments(
            output_dir=str(tmp_path), **{"use_cpu": True, "report_to": "none", **arguments}
        )
        state = TrainerState()
        state.max_steps = max_steps
        processes = Processes(torch.device("cpu"))
        return Run(args, state, TrainerControl(), Plan(), processes, model or torch.nn.Linear(3, 2))

    return make
