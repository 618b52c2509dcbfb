"""Two processes: a run without a hub, and the same one that pushes, of which the main process alone speaks to the hub."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import torch
from support.hub_runs import make, result

from drivetrain import TrainerCallback
from drivetrain.hub import uploads

uploads.PAUSES = (0.0, 0.0, 0.0)
folder = Path(sys.argv[1])
rank = int(os.environ["RANK"])
if rank != 0:
    os.environ["HF_ENDPOINT"] = (
        "http://127.0.0.1:9"  # nobody is there: whatever this process sent would be an error
    )

alone = make(folder / "alone", push_to_hub=False, hub_token=None, hub_patience=600.0)
alone.train()


class Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"SAID {rank} {record.getMessage()}", flush=True)


class Wait(TrainerCallback):
    def on_train_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        print(f"ENDED {rank}", flush=True)


logging.getLogger("drivetrain").addHandler(Said())
pushed = make(folder, hub_strategy="checkpoint", hub_always_push=True, hub_patience=60.0)
pushed.add_callback(Wait())
pushed.train()
pushed.save_model()
pushed.push_to_hub("by hand")
assert result(pushed) == result(alone)
print("RESULT", json.dumps([rank, pushed.state.global_step]), flush=True)
torch.distributed.destroy_process_group()
