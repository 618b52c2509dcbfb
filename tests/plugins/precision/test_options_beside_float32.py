"""Each option of precision and compilation beside plain float32, under each way to spread a model.

`support/precision_options.py` runs them: training, an evaluation, a prediction, and a resume from the middle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import precision_options
from support.launch import torchrun

from drivetrain import hookimpl

SCRIPT = Path(precision_options.__file__)
# Weights that are spread have no trace, which is an error of its own.
SPREAD = [name for name in precision_options.OPTIONS if "jit" not in name]


def told(folder: Path, strategy: str, *names: str) -> dict[str, dict[str, Any]]:
    arguments = (str(folder), strategy, *names)
    if strategy == "single":
        subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, timeout=1500)
    else:
        torchrun(SCRIPT, *arguments, timeout=1500)
    found: dict[str, dict[str, Any]] = json.loads((folder / "told.json").read_text())
    return found


def check(found: dict[str, dict[str, Any]]) -> None:
    for name, row in found.items():
        tolerance = precision_options.OPTIONS[name][1]
        for what in ("losses", "evaluation", "predictions", "weights"):
            assert row[what] <= tolerance, (name, what, row)
        # A run that goes on from its middle is the run that never stopped: loss scale included.
        assert row["resume"] == 0, (name, row)
        before, after = row["scale"]
        assert before == after
        assert (before is not None) is (name == "fp16 on a CPU")


class Overflowing(precision_options.HalfOnCPU):
    """Begins with a scale under which the first gradients are infinite."""

    init_scale = 2.0**21

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, float, float, bool]] = []
        self.before: torch.Tensor | None = None

    @hookimpl
    def on_step_begin(self, run: Any) -> None:
        self.before = run.model.head.weight.detach().clone()

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        assert self.before is not None
        same = torch.equal(self.before, run.model.head.weight)
        rate = run.lr_scheduler.get_last_lr()[0]
        self.seen.append((run.update.stepped, run.strategy.scaler.get_scale(), rate, same))


def test_an_overflow_skips_the_update_and_halves_the_scale_for_good(tmp_path: Path) -> None:
    made = precision_options.trainer(tmp_path, precision=Overflowing)
    watch: Overflowing = made._plugins[0]
    made.train()
    assert watch.seen[0][0] is False
    assert any(stepped for stepped, *_ in watch.seen)
    expected, good, rate_before = Overflowing.init_scale, 0, None
    for stepped, scale, rate, same in watch.seen:
        good = good + 1 if stepped else 0
        expected = expected / 2 if not stepped else expected * 2 if good % 3 == 0 else expected
        assert scale == expected
        assert same is not stepped  # weights move where there was an update, and there alone
        assert (rate == rate_before) is not stepped or rate_before is None  # and so does the schedule
        rate_before = rate
    # A run that goes on from the middle has the scale of that time, and ends in the same bits.
    resumed = precision_options.trainer(tmp_path, precision=Overflowing)
    again: Overflowing = resumed._plugins[0]
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.seen == watch.seen[4:]
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_some_options_with_two_processes(tmp_path: Path) -> None:
    names = ["gradient_checkpointing", "bf16, jit_mode_eval", "fp16 on a CPU", "torch_compile eager"]
    found = told(tmp_path, "ddp", *names)
    assert list(found) == names
    check(found)
    scale, _ = found["fp16 on a CPU"]["scale"]
    assert scale["scale"] == 2.0**12  # it has grown twice in eight updates, and counts towards the next


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_every_option(tmp_path: Path, strategy: str) -> None:
    pytest.importorskip("torchao", reason="the extra 'torchao' is not installed")
    names = SPREAD if strategy == "fsdp" else list(precision_options.OPTIONS)
    found = told(tmp_path, strategy, *names)
    assert list(found) == names
    check(found)
