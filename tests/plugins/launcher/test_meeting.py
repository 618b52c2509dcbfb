"""The processes' meeting, in threads: every wait has an end, and all are told the same."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from support.by_hand import free_port

from drivetrain.errors import ConfigurationError, DrivetrainError, ProcessError
from drivetrain_plugins.launcher import meeting
from drivetrain_plugins.launcher.meeting import Card, Host, Where, attend, listen, ranks


def card(rank: int, size: int, **more: Any) -> Card:
    return {"rank": rank, "size": size, "run": None, **more}


def added(cards: Any) -> Card:
    return {"sum": sum(card["rank"] for card in cards)}


class Meeting:
    """Ranks that come in threads."""

    def __init__(self, size: int, timeout: float = 2.0) -> None:
        self.size, self.timeout = size, timeout
        self.listener = listen(0)
        self.port = self.listener.getsockname()[1]
        self.pool = ThreadPoolExecutor(8)
        self.rank_0 = Host(self.listener, card(0, size), f"here:{self.port}", timeout)

    def host(self, agree: Callable[..., Card] = added, **more: Any) -> Future[Any]:
        self.rank_0.mine |= more
        return self.pool.submit(self.rank_0.meet, agree)

    def close(self) -> None:
        self.pool.shutdown()
        self.listener.close()
        for line in self.rank_0.lines.values():
            line.close()

    def guest(self, rank: int, size: int | None = None, token: str | None = None, **more: Any) -> Future[Any]:
        mine = card(rank, size or self.size, **more)
        where = [Where("127.0.0.1", self.port, token)]
        return self.pool.submit(attend, lambda: where, mine, self.timeout)


@pytest.fixture
def meet() -> Iterator[Callable[..., Meeting]]:
    made: list[Meeting] = []

    def make(*given: Any, **named: Any) -> Meeting:
        made.append(Meeting(*given, **named))
        return made[-1]

    yield make
    for each in made:
        each.close()


def error_of(future: Future[Any]) -> DrivetrainError:
    error = future.exception(timeout=20)
    assert isinstance(error, DrivetrainError)
    return error


def test_all_are_told_what_was_agreed(meet):
    meeting_ = meet(4)
    guests = [meeting_.guest(rank) for rank in (3, 1, 2)]
    assert meeting_.host().result(20) == {"sum": 6}
    for guest in guests:
        agreed, where, line = guest.result(20)
        line.close()
        assert agreed == {"sum": 6}
        assert str(where) == f"127.0.0.1:{meeting_.port}"


def test_who_never_comes_is_named_to_all(meet):
    meeting_ = meet(4, timeout=3.0)
    host, guest = meeting_.host(), meeting_.guest(2)
    for future in (host, guest):
        error = error_of(future)
        assert isinstance(error, ProcessError)
        assert str(error) == (
            f"Of 4 processes 2 came to here:{meeting_.port} within 3 s (ddp_timeout), and ranks 1 and 3 did not: start "
            "as many as the launcher was told of, or raise ddp_timeout."
        )


def test_rank_0_that_never_comes(meet):
    port = free_port()
    with pytest.raises(
        ProcessError, match=rf"Rank 0 was not to be found at 127\.0\.0\.1:{port} within 0\.5 s"
    ):
        attend(lambda: [Where("127.0.0.1", port)], card(1, 2), 0.5)


@pytest.mark.parametrize("whose", [0, 2])
def test_an_error_of_one_is_everyones(meet, whose):
    meeting_ = meet(3)
    error = {"error": ["no such device"]}
    futures = [meeting_.guest(rank, **(error if rank == whose else {})) for rank in (1, 2)]
    futures.append(meeting_.host(**(error if whose == 0 else {})))
    for future in futures:
        found = error_of(future)
        assert isinstance(found, ConfigurationError)
        assert found.problems == ("no such device",)


def test_what_cannot_be_agreed_is_everyones_error(meet):
    def agree(cards: Any) -> Card:
        raise ConfigurationError("two on one device")

    meeting_ = meet(2)
    guest = meeting_.guest(1)
    assert str(error_of(meeting_.host(agree))) == "two on one device"
    assert str(error_of(guest)) == "two on one device"


def test_a_port_in_use():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            listen(port)
    assert str(caught.value) == (
        f"Port {port}, at which rank 0 waits for the others, cannot be had (Address already in use): set MASTER_PORT "
        "to a free one."
    )


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_another_program_at_the_port(says, monkeypatch):
    """It may be silent, which torch's own store would wait on for ever."""
    monkeypatch.setattr(meeting, "_GREETED", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        kept = []

        def accept() -> None:
            while True:
                try:
                    guest, _ = taken.accept()
                except OSError:
                    return
                kept.append(guest)
                guest.sendall(says)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(ConfigurationError) as caught:
            attend(lambda: [Where("127.0.0.1", port)], card(1, 2), 1.0)
        assert time.monotonic() - began < 30
        taken.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for guest in kept:
            guest.close()
    assert str(caught.value) == (
        f"What listens at 127.0.0.1:{port} is not rank 0 of this run but another program: set MASTER_PORT to a free port."
    )


def test_two_processes_of_one_rank(meet):
    meeting_ = meet(3, timeout=4.0)
    host, first = meeting_.host(), meeting_.guest(1)
    time.sleep(0.3)
    second = error_of(meeting_.guest(1))
    assert f"A second process came as rank 1 to here:{meeting_.port}" in str(second)
    assert "rank 2 did not" in str(error_of(host))
    assert "One was turned away: A second process came as rank 1" in str(error_of(first))


def test_another_run_at_the_same_port(meet):
    meeting_ = meet(2, timeout=3.0)
    host = meeting_.host(run="a")
    assert "Another run waits at" in str(error_of(meeting_.guest(1, run="b")))
    assert isinstance(error_of(host), ProcessError)


def test_another_number_of_processes(meet):
    meeting_ = meet(2, timeout=3.0)
    host = meeting_.host()
    assert "There are 2 processes by what rank 0 was told and 3 by what rank 1 was" in str(
        error_of(meeting_.guest(1, size=3))
    )
    assert "One was turned away: There are 2 processes" in str(error_of(host))


def test_whoever_left_may_come_again(meet):
    meeting_ = meet(3, timeout=5.0)
    host = meeting_.host()
    with socket.create_connection(("127.0.0.1", meeting_.port)) as line:
        line.recv(100)
        line.sendall(b'{"rank": 1, "size": 3, "run": null}\n')
        time.sleep(0.2)
    guests = [meeting_.guest(1), meeting_.guest(2)]
    assert host.result(20) == {"sum": 3}
    for guest in guests:
        guest.result(20)[2].close()


def test_the_place_of_an_earlier_rank_0_is_passed_over(meet):
    """After a restart the store of torchrun's agent may still tell of it."""
    meeting_ = meet(2, timeout=10.0)
    token = meeting_.rank_0.token
    old, new = Where("127.0.0.1", meeting_.port, "old"), Where("127.0.0.1", meeting_.port, token)
    told = iter([[], [Where("127.0.0.1", free_port(), "old")], [old], [old, new]])
    guest = meeting_.pool.submit(lambda: attend(lambda: next(told, [new]), card(1, 2), 10.0, sure=False))
    assert meeting_.host().result(20) == {"sum": 1}
    agreed, _, line = guest.result(20)
    line.close()
    assert agreed == {"sum": 1}


def test_how_ranks_are_named():
    assert ranks([2]) == "rank 2"
    assert ranks([2, 3]) == "ranks 2 and 3"
    assert ranks([2, 3, 4, 9, 10]) == "ranks 2, 3, 4 and 2 more"
