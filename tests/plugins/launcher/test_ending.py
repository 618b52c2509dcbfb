"""The last moments of a process: threads of gloo's that are still at work are waited for."""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
from collections.abc import Iterator

import pytest

from drivetrain_plugins.launcher import ending

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
def test_a_thread_that_is_at_work_is_waited_for(thread: Thread) -> None:
    assert not thread.done.is_set()
    ending._settle(60)
    assert thread.done.is_set()


@pytest.mark.parametrize("thread", [1000], indirect=True)
def test_but_not_for_ever(thread: Thread) -> None:
    ending._settle(0.2)
    assert not thread.done.is_set()


@pytest.mark.parametrize("thread", [0], indirect=True)
def test_one_that_sleeps_is_not(thread: Thread) -> None:
    thread.done.wait()
    ending._settle(1e9)
