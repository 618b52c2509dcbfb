"""One process of `checkpoint.py`: makes a checkpoint at a row, or goes on from it and times the first step.

    python checkpoint_resumers.py make|go drivetrain|transformers ROW FOLDER

drivetrain really trains to that row. transformers writes a checkpoint after one step, whose trainer_state.json is then
told to be at that row: what it does to get there depends on nothing else, and training so far would take minutes.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

COUNT, BATCH = 1_100_000, 10


class Reached(Exception):
    """The first forward pass of the run that goes on."""


class Net(nn.Module):
    """Nearly nothing; can end a run at its first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.stops = False

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.stops:
            raise Reached
        return {"loss": nn.functional.mse_loss(self.layer(x)[:, 0], labels)}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows that follow from their number."""

    def __init__(self) -> None:
        self.fetched = 0

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.fetched += 1
        return {"x": torch.full((4,), index / COUNT), "labels": torch.tensor(index / COUNT)}


def trainer(library: Any, folder: Path, steps: int) -> tuple[Any, Net, Rows]:
    class Stop(library.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == steps:
                control.should_save = control.should_training_stop = True

    model, rows = Net(), Rows()
    arguments = library.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return library.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Stop()]), model, rows


def make(engine: str, row: int, folder: Path) -> None:
    steps = row // BATCH
    trainer(importlib.import_module(engine), folder, steps if engine == "drivetrain" else 1)[0].train()
    if engine == "drivetrain":
        return
    (folder / "checkpoint-1").rename(folder / f"checkpoint-{steps}")
    path = folder / f"checkpoint-{steps}" / "trainer_state.json"
    state = json.loads(path.read_text())
    state |= {"global_step": steps, "epoch": row / COUNT}
    path.write_text(json.dumps(state))


def go(engine: str, row: int, folder: Path) -> None:
    made, model, rows = trainer(importlib.import_module(engine), folder / "again", 0)
    model.stops = True
    # torch does so when an optimizer is built, unless somebody has already: a second, on either side.
    importlib.import_module("torch._dynamo")

    began = time.perf_counter()
    try:
        made.train(resume_from_checkpoint=str(folder / f"checkpoint-{row // BATCH}"))
    except Exception as error:
        if not isinstance(error, Reached) and not isinstance(error.__cause__, Reached):
            raise
    print(json.dumps({"seconds": time.perf_counter() - began, "fetched": rows.fetched}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    what, engine, row = sys.argv[1], sys.argv[2], int(sys.argv[3])
    {"make": make, "go": go}[what](engine, row, Path(sys.argv[4]) / f"{engine}-{row}")
