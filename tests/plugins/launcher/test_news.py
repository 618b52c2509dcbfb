"""What processes tell each other beside their group, over real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from drivetrain_plugins.launcher.news import News


@pytest.fixture
def three() -> Iterator[list[News]]:
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    made = [News(0, 3, {rank: pair[0] for rank, pair in pairs.items()})]
    made += [News(rank, 3, {0: pair[1]}) for rank, pair in pairs.items()]
    yield made
    for news in reversed(made):
        news.close(1.0)


def test_a_failure_is_heard_by_all(three):
    three[1].tell("ValueError: my own fault")
    three[2].tell("a later one")
    said = "Another process of this run has failed: rank 1 by ValueError: my own fault"
    assert three[0].failure() == said
    assert three[2].failure() == said


def test_a_process_that_is_killed_says_nothing_and_is_named(three):
    three[2]._lines[0].shutdown(socket.SHUT_RDWR)  # as the system does for a process that is gone
    for news in three[:2]:
        assert news.failure() == (
            "Another process of this run has ended: rank 2, without a word, as when it is killed or finds no memory."
        )


def test_nobody_failed(three):
    assert three[0].failure() is None


def test_one_comes_to_the_end_before_the_others(three):
    assert three[1].wait_for_all(0.2) == [0, 2]
    assert three[2].failure() == (
        "Another process of this run has ended: rank 1 came to the end of the script while this one still trains."
    )


def test_all_come_to_the_end(three):
    missing: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda news=news: missing.append(news.wait_for_all(20))) for news in three
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert missing == [[], [], []]


def test_nobody_is_waited_for_after_a_failure(three):
    three[1].tell("ValueError: my own fault")
    assert three[0].failure()
    assert three[0].wait_for_all(60) == [1, 2]


def test_who_follows_another_waits_until_it_has_gone(three):
    three[1].tell("ValueError: my own fault")
    assert three[0].failure()
    assert three[2].failure()
    waiting = [threading.Thread(target=three[rank].wait_for_failed, args=(60,)) for rank in (0, 2)]
    for thread in waiting:
        thread.start()
    three[1].wait_for_failed(60)  # it follows nobody
    time.sleep(0.5)
    assert [thread.is_alive() for thread in waiting] == [True, True]
    three[1]._lines[0].shutdown(socket.SHUT_RDWR)  # as the system does for a process that is gone
    for thread in waiting:
        thread.join(30)
    assert [thread.is_alive() for thread in waiting] == [False, False]


def test_who_follows_another_does_not_wait_for_ever(three):
    three[1].tell("ValueError: my own fault")
    assert three[2].failure()
    three[2].wait_for_failed(0.2)
    began = time.monotonic()
    thread = threading.Thread(target=three[2].wait_for_failed, args=(60,))
    thread.start()
    three[2].in_haste = True
    thread.join(30)
    assert time.monotonic() - began < 30
    # Nobody tells any more who has gone, once rank 0 has.
    assert three[0].failure()
    three[0].close(0.0)
    three[2].in_haste = False
    three[2].wait_for_failed(60)
    assert time.monotonic() - began < 50


def test_two_that_fail_do_not_wait_for_each_other(three):
    three[1].tell("ValueError: my own fault")
    three[0].tell("another one")
    began = time.monotonic()
    for news in three[:2]:
        assert news.failure()
        news.wait_for_failed(60)
    assert time.monotonic() - began < 30


HUNG = """
import socket, sys, time
from drivetrain_plugins.launcher.ending import end_if_hung
from drivetrain_plugins.launcher.news import News

mine, others = socket.socketpair()
news = News(0, 2, {1: mine})
end_if_hung(news, 0.2)
others.close()
time.sleep(60)
"""


def test_a_process_that_hangs_on_a_dead_one_ends():
    """As under NCCL, whose kernels may wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 3
    assert done.stderr.strip() == (
        "ProcessError: Another process of this run has ended: rank 1, without a word, as when it is killed or finds no "
        "memory."
    )


def test_who_leaves_the_group_is_known_to_all(three):
    heard = threading.Event()
    three[0].on_left(heard.set)
    three[2].tell_left("ValueError: why")
    for news in three:
        assert news.failure() is None  # it is no failure, and nobody waits longer for one
        assert news.left() == (2, "ValueError: why")
    assert heard.is_set()
    # In the next group it is old news, also where it comes late.
    assert [news.next_group() for news in three[:2]] == [1, 1]
    three[2].tell_left("")
    assert [news.left() for news in three] == [None, None, (2, "ValueError: why")]
    # A failure counts for more: the run cannot begin anew.
    three[1].tell_left("")
    three[1].tell("ValueError: my own fault")
    end = time.monotonic() + 60
    while not three[0].has_failed() and time.monotonic() < end:
        time.sleep(0.01)
    assert "rank 1 by ValueError" in three[0].failure()
