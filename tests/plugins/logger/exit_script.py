"""A process that trains, and whose loggers are not done when it ends: `exit_script.py FOLDER [wait]`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from support.logged import Net

from drivetrain import Trainer, TrainingArguments
from drivetrain_plugins.logger.base import Logger
from drivetrain_plugins.logger.facts import Facts, Row
from drivetrain_plugins.logger.options import LoggerOptions

FOLDER = Path(sys.argv[1])
WAITS = len(sys.argv) > 2

# Its import is under way when the main thread is about to fork, and for half a second more if it does not.
IMPORTING, ABOUT_TO, FORKED = threading.Event(), threading.Event(), threading.Event()
SLOW_MODULE = """
import __main__
if hasattr(__main__, "IMPORTING"):
    __main__.IMPORTING.set()
    __main__.ABOUT_TO.wait(120)
    __main__.FORKED.wait(0.5)
"""


def about_to_fork() -> None:
    IMPORTING.wait(120)
    ABOUT_TO.set()


class AtTheEnd(Logger):
    """Writes when the main thread is done, so that all that it writes is written at the process's end."""

    name = "at_the_end"

    def open(self, facts: Facts) -> None:
        importlib.import_module("slow_module")  # its lock is held while a worker may be forked
        self.lines: list[dict[str, Any]] = []

    def write(self, row: Row) -> None:
        if not WAITS:
            threading.main_thread().join()
        self.lines.append({**row.values, "step": row.step})

    def close(self) -> None:
        (FOLDER / "written.json").write_text(json.dumps(self.lines))


class Never(Logger):
    name = "never"

    def open(self, facts: Facts) -> None:
        pass

    def write(self, row: Row) -> None:
        threading.Event().wait()


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        importlib.import_module("slow_module")
        if WAITS:
            time.sleep(0.05)
        return {"x": torch.ones(4) * index, "labels": index % 2}


if __name__ == "__main__":
    (FOLDER / "slow_module.py").write_text(SLOW_MODULE)
    sys.path.insert(0, str(FOLDER))
    if WAITS:
        ABOUT_TO.set()
    else:
        os.register_at_fork(before=about_to_fork, after_in_parent=FORKED.set)
    args = TrainingArguments(
        str(FOLDER / "out"),
        num_train_epochs=1000 if WAITS else 2,
        logging_steps=1,
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=0 if WAITS else 1,
    )
    # The end of train() waits that long as well, for rows that this logger writes afterwards.
    patient = LoggerOptions(close_timeout=120.0 if WAITS else 12.0, open_timeout=120.0 if WAITS else 0.0)
    loggers: list[Logger] = [AtTheEnd(patient)]
    if not WAITS:
        loggers.append(Never(LoggerOptions(close_timeout=2.0)))
    trainer = Trainer(Net(), args, train_dataset=Rows(), plugins=loggers)
    print("begins", os.getpid(), flush=True)
    trainer.train()
    (FOLDER / "history.json").write_text(json.dumps(trainer.state.log_history))
