"""Runs on real file systems that are too small, or that become read-only. Run by test_disks.py in its own mounts.

disks.py SCENARIO FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.by_hand import free_port
from support.toy import history, rows, weights_equal

from drivetrain import CheckpointError, ConfigurationError, Trainer, TrainerCallback, TrainingArguments
from drivetrain.checkpoint import checkpoints, validate

MB = 1 << 20
_WIDTH = 20_000  # of a linear layer: 3 * 8 * 20,000 numbers and some, 0.8 MB, with AdamW's moments 2.4 MB


class Wide(torch.nn.Module):
    """A model whose checkpoint takes 2.4 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, _WIDTH)
        self.second = torch.nn.Linear(_WIDTH, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"loss": self.second(torch.relu(self.first(x))).square().mean()}


class At(TrainerCallback):
    """Does something at the end of a step, before what is due, and when nothing is being written."""

    trainer: Trainer

    def __init__(self, actions: dict[int, Callable[[], Any]]) -> None:
        self.actions = actions

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.actions:
            while self.trainer._writer is not None and not self.trainer._writer.is_idle():
                time.sleep(0.001)
            self.actions[state.global_step]()


class Heard(logging.Handler):
    """What was logged at warning or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logger = logging.getLogger("drivetrain")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def having(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


def trainer(folder: str, actions: dict[int, Callable[[], Any]] | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    values = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }
    values |= {"use_cpu": True, "logging_steps": 1, "learning_rate": 1e-4}
    at = At(actions or {})
    at.trainer = Trainer(
        Wide(), TrainingArguments(folder, **{**values, **settings}), train_dataset=rows(), callbacks=[at]
    )
    return at.trainer


def mount(folder: str, size: int) -> str:
    os.makedirs(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    return folder


def remount(folder: str, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def valid(out: str) -> list[int]:
    """The steps of the checkpoints, which are whole, and beside which nothing lies."""
    found = checkpoints(out)
    names = sorted(name for name in os.listdir(out) if name != "drivetrain-record.jsonl")
    assert names == sorted(os.path.basename(folder) for _, folder in found)
    for _, folder in found:
        assert validate(folder) is None, folder
    return [step for step, _ in found]


def refused(trained: Trainer) -> str:
    with pytest.raises(CheckpointError) as caught:
        trained.train()
    return str(caught.value)


def full(root: str, **settings: Any) -> None:
    """One checkpoint fits, the second does not."""
    disk = mount(os.path.join(root, "full"), 3 * MB)
    out = os.path.join(disk, "out")
    heard = Heard()
    text = refused(trainer(out, **settings))
    assert valid(out) == [2]
    found = re.fullmatch(
        rf"Checkpoint checkpoint-4 was not written, because the disk of {out} is full: it takes about "
        r"([\d.]+) MB, and ([\d.]+) (kB|MB) more are needed; free some space there, or lower save_total_limit\.",
        text,
    )
    assert found is not None, text
    takes, missing = float(found[1]) * 1e6, float(found[2]) * {"kB": 1e3, "MB": 1e6}[found[3]]
    really = sum(entry.stat().st_size for entry in os.scandir(os.path.join(out, "checkpoint-2")))
    assert abs(takes - really) < 0.05 * really, (takes, really)
    free = shutil.disk_usage(disk).free
    assert abs(missing - (takes - free)) < 0.1e6, (missing, takes, free)
    # It was said before the run: four checkpoints, which one can count.
    (said,) = heard.having("will not fit")
    assert "4 of about 2.4 MB each need 9.6 MB more in" in said, said
    assert "where 3.1 MB are free; set save_total_limit, save less often" in said, said
    # As much room as the message asks for is enough.
    remount(disk, f"size={int(3 * MB + missing + 0.2e6)}")
    trainer(out, max_steps=4, **settings).train(resume_from_checkpoint=True)
    assert valid(out) == [2, 4]


def goes_on(root: str, **settings: Any) -> None:
    """With on_save_error="warn" a run on a full disk ends as one on a large disk; when there is room again, it saves."""
    disk = mount(os.path.join(root, "warn"), 6 * MB)
    out, ballast = os.path.join(disk, "out"), os.path.join(disk, "ballast")
    heard = Heard()

    def fill() -> None:
        with open(ballast, "wb") as file:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - MB)

    actions = {3: fill, 7: lambda: os.unlink(ballast)}
    trained = trainer(out, actions, on_save_error="warn", save_total_limit=2, **settings)
    trained.train()
    assert valid(out) == [2, 8]
    assert len(heard.having("The run goes on without this checkpoint")) == 2
    assert all("is full" in line for line in heard.having("The run goes on without this checkpoint"))
    whole = trainer(os.path.join(root, "large"), **settings)
    whole.train()
    assert weights_equal(trained.model, whole.model)
    assert history(trained) == history(whole)


def read_only(root: str, **settings: Any) -> None:
    """A file system that becomes read-only, as one does whose disk reports errors."""
    disk = mount(os.path.join(root, "ro"), 40 * MB)
    out = os.path.join(disk, "out")
    text = refused(trainer(out, {3: lambda: remount(disk, "ro")}, **settings))
    assert text == (
        f"Checkpoint checkpoint-4 was not written, because {out} cannot be written to; choose another output_dir."
    ), text
    assert valid(out) == [2]
    with pytest.raises(
        ConfigurationError, match=r"cannot be made \(Read-only file system\): choose another one\."
    ):
        trainer(os.path.join(disk, "new"))
    # What stands there can be gone on from, elsewhere.
    elsewhere = trainer(os.path.join(root, "elsewhere"), **settings)
    elsewhere.train(resume_from_checkpoint=os.path.join(out, "checkpoint-2"))
    remount(disk, "rw")
    actions = {3: lambda: remount(disk, "ro"), 5: lambda: remount(disk, "rw")}
    shutil.rmtree(out)
    trained = trainer(out, actions, on_save_error="warn", **settings)
    trained.train()
    assert valid(out) == [2, 6, 8]
    assert weights_equal(trained.model, elsewhere.model)


def limited(root: str, **settings: Any) -> None:
    """A limit on the size of files, which needs no rights: RLIMIT_FSIZE."""
    out = os.path.join(root, "limited")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(soft: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    text = refused(trainer(out, {3: limit(400_000)}, **settings))
    limit(before[0])()
    assert text == (
        f"Checkpoint checkpoint-4 was not written, because the system limits the size of files in {out}; "
        "lower max_shard_size, or raise the limit (ulimit -f)."
    ), text
    assert valid(out) == [2]
    shutil.rmtree(out)
    actions = {3: limit(400_000), 5: limit(before[0])}
    trainer(out, actions, on_save_error="warn", **settings).train()
    assert valid(out) == [2, 6, 8]


SHARDED = {"fsdp": "full_shard", "fsdp_config": {"state_dict_type": "sharded_state_dict"}}


def full_for_two(root: str, **settings: Any) -> None:
    """Two processes that each write a part: both are told, and nothing is left of any part."""
    disk = mount(os.path.join(root, "two"), 3 * MB)
    out = os.path.join(disk, "out")
    common = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(free_port())
    command = [sys.executable, __file__, "one_of_two", out, json.dumps({**SHARDED, **settings})]
    running = [
        subprocess.Popen(
            command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[0] for process in running]
    for text in said:
        found = re.search(
            r"refused: (Rank \d: )?Checkpoint checkpoint-4 was not written, because the disk of \S+ is full: it takes about "
            r"2\.\d MB, and \d+(\.\d)? (kB|MB) more are needed; free some space there, or lower save_total_limit\.",
            text,
        )
        assert found is not None, said
    assert valid(out) == [2]


def one_of_two(out: str, settings: str) -> None:
    print("refused:", refused(trainer(out, **json.loads(settings))))


if __name__ == "__main__":
    named = {
        "full": full,
        "goes_on": goes_on,
        "read_only": read_only,
        "limited": limited,
        "full_for_two": full_for_two,
    }
    if sys.argv[1] == "one_of_two":
        one_of_two(*sys.argv[2:])
    else:
        for number, way in enumerate(({}, {"save_async": True})):
            named[sys.argv[1]](os.path.join(sys.argv[2], str(number)), **way)
        print("done")
