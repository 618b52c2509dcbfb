"""Trains a toy; one rank does something at a step. `train_script.py FOLDER JSON`.

JSON: `act` (kill, raise, exit, stop), `rank`, `step`, `attempt` (only in that one), and training arguments.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch
from support.toy import trainer

from drivetrain import TrainerCallback

folder, settings = sys.argv[1], json.loads(sys.argv[2])
act, rank, step = (settings.pop(name, default) for name, default in (("act", ""), ("rank", 1), ("step", 3)))
world = int(os.environ.get("WORLD_SIZE", "1"))
marks = settings.pop("marks", None)  # a folder: the act is done once in all attempts


class Act(TrainerCallback):
    """Does what was asked for, once."""

    def on_step_end(self, args, state, control, **kwargs):
        if not act or args.process_index != rank or state.global_step != step:
            return
        if marks is not None:
            try:
                os.mkdir(marks)
            except FileExistsError:
                return
        print(f"now {act}", file=sys.stderr, flush=True)
        if act == "raise":
            raise ValueError("my own fault")
        if act == "exit":
            sys.exit(7)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[act])


trained = trainer(
    f"{folder}/run",
    callbacks=[Act()],
    **({"num_train_epochs": 1, "save_strategy": "no", "per_device_train_batch_size": 8 // world} | settings),
)
trained.train()
if trained.is_world_process_zero():
    torch.save(
        {"weights": trained.model.state_dict(), "attempt": trained.run.processes.attempt, "world": world},
        f"{folder}/result.pt",
    )
