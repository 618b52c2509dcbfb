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
from support import precision_options
from support.launch import torchrun

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
