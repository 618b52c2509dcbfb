"""A process that is killed in the middle of a step resumes from its last checkpoint, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.toy import history, trainer, weights_equal

SCRIPT = """
import os, signal, sys
from support.toy import trainer
from drivetrain import TrainerCallback

class Kill(TrainerCallback):
    def {event}(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

trainer(sys.argv[1], dropout=0.2, gradient_accumulation_steps=2, max_steps=9, save_steps=2, logging_steps=1, save_async={form}, callbacks=[Kill]).train()
"""


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("event", ["on_step_end", "on_substep_end"])
def test_a_killed_process_resumes(tmp_path: Path, event: str, form: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(event=event, form=form))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    values = {
        "dropout": 0.2,
        "gradient_accumulation_steps": 2,
        "max_steps": 9,
        "save_steps": 2,
        "logging_steps": 1,
    }
    resumed = trainer(tmp_path / "out", **values)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", **values)
    whole.train()
    assert history(resumed) == history(whole)
    assert weights_equal(resumed.model, whole.model)
