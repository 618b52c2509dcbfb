"""Real processes that fail: every one ends within the time, with one sentence, and none is killed by the test."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from support.by_hand import Ended, as_torchrun, environment, free_port, run
from support.strangers import Site

START = str(Path(__file__).with_name("start_script.py"))
TRAIN = str(Path(__file__).with_name("train_script.py"))
STUCK = str(Path(__file__).with_name("stuck_script.py"))
FOLLOWED = str(Path(__file__).with_name("followed_script.py"))
RENEWAL = str(Path(__file__).with_name("renewal_script.py"))


def start(count: int, size: int | None = None, port: int | None = None, **settings: Any) -> list[Ended]:
    port = free_port() if port is None else port
    ranks = [as_torchrun(rank, size or count, port) for rank in range(count)]
    return run([START, json.dumps({"ddp_timeout": 5, **settings})], ranks)


def train(folder: Path, count: int = 2, **settings: Any) -> list[Ended]:
    port = free_port()
    ranks = [as_torchrun(rank, count, port) for rank in range(count)]
    return run([TRAIN, str(folder), json.dumps({"ddp_timeout": 110, **settings})], ranks)


def test_a_backend_that_this_torch_lacks() -> None:
    for each in start(2, ddp_backend="ccl"):
        assert each.code == 1
        assert each.sentence == (
            "drivetrain.errors.ConfigurationError: ddp_backend='ccl' is not in this torch, which has: gloo."
        )


@pytest.mark.slow
def test_a_rank_that_never_comes() -> None:
    port = free_port()
    for each in start(2, size=3, port=port, ddp_timeout=10):
        assert each.code == 1
        assert each.sentence == (
            f"drivetrain.errors.ProcessError: Of 3 processes 2 came to 127.0.0.1:{port} within 10 s (ddp_timeout), and "
            "rank 2 did not: start as many as the launcher was told of, or raise ddp_timeout."
        )


@pytest.mark.slow
def test_a_port_that_is_in_use() -> None:
    """By a program that says nothing: torch's store would wait on it for ever, and end in SIGABRT."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        first, second = start(2, port=port)
    assert (first.code, second.code) == (1, 1)
    assert f"Port {port}, at which rank 0 waits for the others, cannot be had" in first.sentence
    assert (
        f"What listens at 127.0.0.1:{port} is not rank 0 of this run but another program" in second.sentence
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "code", "sentence"),
    [
        (
            "kill",
            -signal.SIGKILL,
            "Another process of this run has ended: rank 1, without a word, as when it is killed or finds no memory.",
        ),
        ("raise", 1, "Another process of this run has failed: rank 1 by ValueError: my own fault"),
        ("exit", 7, "Another process of this run has failed: rank 1 by SystemExit: 7"),
    ],
)
def test_a_rank_that_ends_takes_the_others_with_it(
    tmp_path: Path, act: str, code: int, sentence: str
) -> None:
    first, second, third = train(tmp_path, 3, act=act)
    assert second.code == code
    for each in (first, third):
        assert each.code == 1, each.err
        assert each.sentence == f"drivetrain.errors.ProcessError: {sentence}"
        assert each.seconds - second.seconds < 60  # and not the 110 s of ddp_timeout


@pytest.mark.slow
@pytest.mark.parametrize(("words", "follow"), [(["6"], True), (["12", "SIGTERM"], False)])
def test_whoever_follows_another_ends_after_it(words: list[str], follow: bool) -> None:
    """A launcher blames the first to end, and cuts off the others; who is told to end does so, in good order."""
    port = free_port()
    first, second, third = run([FOLLOWED, *words], [as_torchrun(rank, 3, port) for rank in range(3)])
    assert (second.code, second.sentence) == (1, "ValueError: my own fault")
    for each in (first, third):
        assert (each.code, each.out) == (1, "the end\n"), each.err
        assert each.sentence.endswith("has failed: rank 1 by ValueError: my own fault")
        assert (each.seconds > second.seconds - 3) == follow


@pytest.mark.slow
def test_what_waits_for_a_living_process_when_another_is_dead_is_broken_off() -> None:
    """As gloo does where a collective has failed in the midst of what a living process sends for it."""
    port = free_port()
    ranks = [as_torchrun(rank, 3, port) for rank in range(3)]
    _, second, third = run([STUCK, "lost"], ranks, enough=2)
    assert (second.code, third.code) == (-signal.SIGKILL, 1), third.err
    assert third.sentence.startswith(
        "drivetrain.errors.ProcessError: Another process of this run has ended: rank 1, without a word"
    )
    assert third.out == "the writers' sum is 2\n"  # a checkpoint under way is finished
    assert third.seconds - second.seconds < 60  # and not the 110 s of ddp_timeout


@pytest.mark.slow
@pytest.mark.parametrize("form", ["own", "deaf"])
def test_a_process_that_fails_with_a_collective_under_way_ends(form: str) -> None:
    port = free_port()
    ranks = [as_torchrun(rank, 3, port) for rank in range(3)]
    first, *_ = run([STUCK, form], ranks, enough=1, timeout=90)
    assert (first.code, first.sentence) == (1, "ValueError: my own fault"), first.err


@pytest.mark.slow
def test_what_waits_for_a_busy_process_when_another_leaves_the_group_is_broken_off(tmp_path: Path) -> None:
    port = free_port()
    ended = run([RENEWAL, str(tmp_path)], [as_torchrun(rank, 3, port) for rank in range(3)])
    assert [(each.code, each.out) for each in ended] == [(0, "6, 0 threads more\n")] * 3, [
        each.err for each in ended
    ]


@pytest.mark.slow
def test_rank_0_that_is_killed(tmp_path: Path) -> None:
    first, second = train(tmp_path, act="kill", rank=0)
    assert (first.code, second.code) == (-signal.SIGKILL, 1)
    assert second.sentence.startswith(
        "drivetrain.errors.ProcessError: Another process of this run has ended: rank 0, without a word"
    )


@pytest.mark.slow
def test_a_rank_that_does_not_answer(tmp_path: Path) -> None:
    """It is stopped, and its connections stay: only the timeout tells."""
    port = free_port()
    ranks = [as_torchrun(rank, 2, port) for rank in range(2)]
    settings = {"ddp_timeout": 15, "act": "stop"}
    first, second = run([TRAIN, str(tmp_path), json.dumps(settings)], ranks, enough=1)
    assert second.code == -signal.SIGKILL  # by the test
    assert first.code == 1, first.err
    assert first.sentence == (
        "drivetrain.errors.ProcessError: Another process of this run does not answer within ddp_timeout: see what the "
        "others printed, and raise ddp_timeout where one of them only needs longer."
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strategy": "fsdpp"}, "Unknown strategy 'fsdpp'. Did you mean 'fsdp'?"),
        ({"plugins": {"ddp": {"statc_graph": True}}}, "Did you mean 'static_graph'?"),
    ],
)
def test_what_is_wrong_for_all_is_said_by_all(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    for each in train(tmp_path, **settings):
        assert each.code == 1
        assert sentence in each.sentence


@pytest.mark.slow
def test_a_missing_engine(tmp_path: Path) -> None:
    """A strategy is installed, and the engine that it wraps is not."""
    site = Site(tmp_path / "site")
    site.plugin("strategy", "warp", fields='requires=("warp_engine",), distribution="drivetrain-warp"')
    port = free_port()
    path = os.pathsep.join([str(site.folder), environment()["PYTHONPATH"]])
    ranks = [as_torchrun(rank, 2, port) | {"PYTHONPATH": path} for rank in range(2)]
    for each in run([TRAIN, str(tmp_path), json.dumps({"strategy": "warp"})], ranks):
        assert each.code == 1
        assert each.sentence == (
            "drivetrain.errors.ConfigurationError: Strategy 'warp' needs warp_engine, which is not installed. "
            "Run: pip install 'warp_engine'"
        )


@pytest.mark.slow
def test_a_number_of_processes_that_does_not_fit(tmp_path: Path) -> None:
    """Three processes cannot be dealt out in groups of two."""
    settings = {"fsdp": "hybrid_shard", "plugins": {"fsdp": {"shard_size": 2}}}
    for each in train(tmp_path, 3, per_device_train_batch_size=2, **settings):
        assert each.code == 1, each.err
        assert each.sentence == (
            "drivetrain.errors.ConfigurationError: fsdp='hybrid_shard' cannot deal 3 processes out in groups of 2: set "
            "shard_size in plugins={'fsdp': {...}} to one of 1, 3."
        )


@pytest.mark.slow
def test_more_processes_than_rows_of_a_batch_is_fine(tmp_path: Path) -> None:
    ended = train(tmp_path, 3, per_device_train_batch_size=1, max_steps=2)
    assert [each.code for each in ended] == [0, 0, 0], [each.err for each in ended]
