"""Goes on from a checkpoint of transformers under torchrun: NAME FOLDER SETTINGS CHECKPOINT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.transformers_4_34_0 import make, outcome

from drivetrain import Trainer, TrainingArguments

name, folder, settings, checkpoint = sys.argv[1:]
trainer = make(Trainer, TrainingArguments, name, Path(folder) / "out", **json.loads(settings))
trainer.train(resume_from_checkpoint=checkpoint)
if trainer.is_world_process_zero():
    (Path(folder) / "outcome.json").write_text(json.dumps(outcome(trainer)))
