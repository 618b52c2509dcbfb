"""Trains a toy undisturbed, then until it is told to leave, then on. `leave_script.py FOLDER JSON`.

JSON: `signal` (its name, which rank 1 sends itself; without it, HERE is printed where one may come from outside) and
training arguments. Ends as the run that was told to leave does; before that rank 0 prints EXACT, where the run that
went on is bit for bit the undisturbed one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from support.toy import history, trainer, weights_equal

from drivetrain import TrainerCallback
from drivetrain.errors import Preempted

folder, settings = sys.argv[1], json.loads(sys.argv[2])
own = settings.pop("signal", None)
rank = int(os.environ["RANK"])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it


class Slow(TrainerCallback):
    """Steps that take a while, and a signal in the middle of the fifth."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.02)
        if state.global_step == 5:
            if own is not None and rank == 1:
                os.kill(os.getpid(), getattr(signal, own))
            elif own is None and rank == 0:
                print("HERE", flush=True)


def make(name: str, *callbacks: Any) -> Any:
    return trainer(
        f"{folder}/{name}",
        callbacks=callbacks,
        **{
            "dropout": 0.2,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2,
            "max_steps": 60,
            "save_steps": 500,
            "logging_steps": 7,
        }
        | settings,
    )


whole = make("whole")
whole.train()
left: BaseException | None = None
try:
    make("run", Slow()).train()
except (Preempted, KeyboardInterrupt) as error:
    left = error
assert left is not None
step = int(os.path.basename(left.checkpoint).partition("-")[2])  # type: ignore[attr-defined]
assert 6 <= step < 60, step
resumed = make("run")
resumed.train(resume_from_checkpoint=True)
if rank == 0:
    assert history(resumed) == history(whole)
    assert weights_equal(resumed.model, whole.model)
    print("EXACT", flush=True)
raise left
