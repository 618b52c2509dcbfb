"""Threads of gloo's that are still at work when a group is ended are waited for."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.by_hand import environment
from support.toy import rows, trainer

from drivetrain_plugins import gloo

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the system does not tell what its threads do"
)
NAME = 15  # PR_SET_NAME


class Thread(threading.Thread):
    """Has the name of a thread of gloo's, and hashes, which needs the interpreter's lock at the end alone."""

    def __init__(self, rounds: int) -> None:
        super().__init__(daemon=True)
        self.rounds, self.named, self.done = rounds, threading.Event(), threading.Event()
        self.stop = threading.Event()

    def run(self) -> None:
        ctypes.CDLL(None).prctl(NAME, b"pt_gloo_runloop", 0, 0, 0)
        self.named.set()
        block = bytes(1 << 24)
        while self.rounds > 0:
            hashlib.sha256(block)
            self.rounds -= 1
        self.done.set()
        self.stop.wait()


@pytest.fixture
def thread(request: pytest.FixtureRequest) -> Iterator[Thread]:
    made = Thread(request.param)
    made.start()
    made.named.wait()
    yield made
    made.rounds = 0
    made.stop.set()


@pytest.mark.parametrize("thread", [20], indirect=True)
def test_a_thread_that_is_at_work_is_waited_for(thread: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gloo, "PATIENCE", 60.0)
    assert not thread.done.is_set()
    gloo.settle()
    assert thread.done.is_set()


@pytest.mark.parametrize("thread", [1000], indirect=True)
def test_but_not_for_ever(thread: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gloo, "PATIENCE", 0.2)
    gloo.settle()
    assert not thread.done.is_set()


@pytest.mark.parametrize("thread", [0], indirect=True)
def test_one_that_sleeps_is_not(thread: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    thread.done.wait()
    monkeypatch.setattr(gloo, "PATIENCE", 1e9)
    gloo.settle()


NO_MEMORY = """
import os, resource
import torch.distributed as dist
from drivetrain_plugins import gloo

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
before = len(os.listdir("/proc/self/task"))
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**20, -1))  # a thread's stack takes 8 MB
gloo.break_off_later()
print("kept", len(gloo._kept))
dist.destroy_process_group()
gloo.take_apart()
print("left", len(gloo._kept), before - len(os.listdir("/proc/self/task")) > 1)
"""


def test_without_memory_for_a_thread_a_group_is_broken_off_and_taken_apart_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_MEMORY],
        capture_output=True, text=True, timeout=200, check=False, env=environment(),
    )  # fmt: skip
    assert done.stdout == "kept 1\nleft 0 True\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_one_process_that_has_a_group_waits_too(tmp_path: Path, engine: str) -> None:
    """At the end of the training, as it ends its group."""
    pytest.importorskip("deepspeed" if engine == "deepspeed" else "torch")
    script = [sys.executable, "-W", "ignore", __file__, engine, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=200, check=False, env=environment())
    assert "AT WORK, THEN DONE" in done.stdout, done.stderr


def train(engine: dict[str, Any], folder: Path) -> None:
    """One update beside a thread that is at work when the group ends."""
    thread = Thread(1_000_000)
    thread.start()
    settle = gloo.settle

    def watched() -> None:
        thread.rounds = 20
        settle()
        print("AT WORK, THEN DONE" if thread.done.is_set() else "NOT DONE")

    gloo.PATIENCE, gloo.settle = 60.0, watched
    trainer(folder, data=rows(8), max_steps=1, save_strategy="no", **engine).train()
    thread.stop.set()


if __name__ == "__main__":
    ENGINES: dict[str, dict[str, Any]] = {
        "fsdp": {"fsdp": "full_shard"},
        "deepspeed": {"deepspeed": {"zero_optimization": {"stage": 1}}},
    }
    train(ENGINES[sys.argv[1]], Path(sys.argv[2]))
