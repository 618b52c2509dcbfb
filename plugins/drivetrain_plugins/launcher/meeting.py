"""Where the processes of a run find each other: rank 0 listens, the others come, and all are told the same.

torch's own store waits without bound for whatever listens at its port, and names nobody who is missing. Here each
wait has an end, a program that has the port already is recognized, and who does not come is named on every rank.

A process that comes sends its card, a line of JSON; rank 0 greets it at once, and when all have come sends what was
agreed upon. A card may bear an error: then all are told that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from drivetrain.errors import ConfigurationError, DrivetrainError, ProcessError

Card = dict[str, Any]
_GREETING = "drivetrain "
_LONGEST = 1 << 16  # bytes of a line
# How long rank 0 goes on to tell those who come later of an error.
_GRACE = 5.0
# How long rank 0 may take to greet; it does nothing else meanwhile, but the machine may be busy.
_GREETED = 10.0
_AGAIN = 0.1
_MARGIN = 10.0


@dataclass(frozen=True)
class Where:
    """An address of rank 0; `token` is what its greeting must bear, None where that is not known."""

    address: str
    port: int
    token: str | None = None

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def listen(port: int) -> socket.socket:
    """A socket that listens on every address of this machine; port 0 takes a free one.

    Raises:
        ConfigurationError: it is in use.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except OSError:
        pass  # a machine without IPv6; what else is wrong is wrong for IPv4 too
    try:
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"Port {port}, at which rank 0 waits for the others, cannot be had ({os.strerror(error.errno or 0)}): set "
            "MASTER_PORT to a free one."
        ) from error


@dataclass
class Host:
    """Rank 0's side.

    Args:
        listener: of `listen`.
        mine: rank 0's own card: `rank`, `size`, `run`, and `error` where it has one.
        where: how the others know this place, for messages.
        timeout: seconds to wait for all.

    Attributes:
        lines: after the meeting, the connection to each of the others.
    """

    listener: socket.socket
    mine: Card
    where: str
    timeout: float
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    cards: dict[int, Card] = field(default_factory=dict)
    lines: dict[int, socket.socket] = field(default_factory=dict)
    _unread: dict[socket.socket, bytes] = field(default_factory=dict)
    _refused: str = ""

    def meet(self, agree: Callable[[Sequence[Card]], Card]) -> Card:
        """Waits until all have come, and tells them what `agree` makes of their cards, by rank.

        Raises:
            ConfigurationError: one of them has an error; all raise the same.
            ProcessError: somebody did not come in time.
        """
        size = int(self.mine["size"])
        self.cards[0] = self.mine
        error: DrivetrainError | None = _error_of(self.mine)
        end = time.monotonic() + (self.timeout if error is None else _GRACE)
        with self.listener, selectors.DefaultSelector() as waiting:
            self.listener.setblocking(False)
            waiting.register(self.listener, selectors.EVENT_READ)
            while len(self.cards) < size and (left := end - time.monotonic()) > 0:
                for key, _ in waiting.select(min(left, 1.0)):
                    if key.fileobj is self.listener:
                        self._greet(waiting)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._read(key.fileobj, waiting)
                found = next((e for e in map(_error_of, self.cards.values()) if e is not None), None)
                if error is None and found is not None:
                    error, end = found, min(end, time.monotonic() + _GRACE)
            agreed: Card = {}
            if error is None and len(self.cards) < size:
                error = self._missing(size)
            if error is None:
                try:
                    agreed = agree([self.cards[rank] for rank in range(size)])
                except ConfigurationError as problem:
                    error = problem
            self._tell_all(agreed if error is None else _as_card(error))
        if error is not None:
            raise error
        return agreed

    def _greet(self, waiting: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            guest, _ = self.listener.accept()
            guest.settimeout(_GREETED)
            guest.sendall(f"{_GREETING}{self.token}\n".encode())
            guest.setblocking(False)
            self._unread[guest] = b""
            waiting.register(guest, selectors.EVENT_READ)

    def _read(self, guest: socket.socket, waiting: selectors.BaseSelector) -> None:
        try:
            got = guest.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        line = self._unread[guest] = self._unread[guest] + got
        if not got or len(line) > _LONGEST:
            self._forget(guest, waiting)
        elif line.endswith(b"\n"):
            card = _parsed(line)
            reason = "it is no process of drivetrain" if card is None else self._reason_against(card)
            if card is None or reason:
                self._refused = reason
                _send(guest, _as_card(ConfigurationError(reason)))
                self._forget(guest, waiting)
            else:
                self.cards[int(card["rank"])] = card
                self.lines[int(card["rank"])] = guest

    def _reason_against(self, card: Card) -> str:
        rank, size = card.get("rank"), card.get("size")
        mine = self.mine.get("run"), card.get("run")
        if None not in mine and mine[0] != mine[1]:
            return f"Another run waits at {self.where} for its processes: set another MASTER_PORT for one of them."
        if size != self.mine["size"]:
            return (
                f"There are {self.mine['size']} processes by what rank 0 was told and {size} by what rank {rank} was: "
                "start all of them with one number."
            )
        if not isinstance(rank, int) or not 0 < rank < int(self.mine["size"]):
            return f"A second process came as rank {rank} to {self.where}: each needs a rank of its own."
        if rank in self.cards:
            return (
                f"A second process came as rank {rank} to {self.where}: each needs a rank of its own, and each run a "
                "MASTER_PORT of its own."
            )
        return ""

    def _forget(self, guest: socket.socket, waiting: selectors.BaseSelector) -> None:
        """Somebody left; it may have been one who had come, and who may come again."""
        waiting.unregister(guest)
        del self._unread[guest]
        for rank, other in list(self.lines.items()):
            if other is guest and not self.cards[rank].get("error"):
                del self.lines[rank], self.cards[rank]
        guest.close()

    def _missing(self, size: int) -> ProcessError:
        missing = [rank for rank in range(size) if rank not in self.cards]
        refused = f" One was turned away: {self._refused}" if self._refused else ""
        return ProcessError(
            f"Of {size} processes {len(self.cards)} came to {self.where} within {self.timeout:g} s (ddp_timeout), and "
            f"{ranks(missing)} did not: start as many as the launcher was told of, or raise ddp_timeout.{refused}"
        )

    def _tell_all(self, answer: Card) -> None:
        for guest in self.lines.values():
            _send(guest, answer)
        kept = [] if answer.get("error") else list(self.lines.values())
        for guest in self._unread:
            if guest not in kept:
                guest.close()


def attend(
    where: Callable[[], Iterable[Where]], mine: Card, timeout: float, *, sure: bool = True
) -> tuple[Card, Where, socket.socket]:
    """Comes to rank 0, and waits for what all agree upon.

    Args:
        where: the addresses to try, asked again before each round.
        mine: this process's card.
        timeout: seconds until rank 0 must have been found; it then decides itself how long all wait.
        sure: the address is rank 0's and nobody else's, so that another's answer is an error at once.

    Returns:
        what was agreed, the address at which rank 0 was found, and the connection.

    Raises:
        ConfigurationError: one of the processes has an error, or another program has rank 0's port.
        ProcessError: rank 0 is not there, or somebody else did not come.
    """
    end = time.monotonic() + timeout
    tried: list[Where] = []
    silent = False
    while time.monotonic() < end:
        tried = list(where()) or tried
        for place in tried:
            left = max(end - time.monotonic(), 0.1)
            try:
                line = socket.create_connection((place.address, place.port), timeout=min(left, 5.0))
            except OSError:
                continue  # nobody is there yet
            try:
                answer = _talk(line, place, mine, min(left, _GREETED), timeout + _MARGIN)
            except _Silent:
                silent = True
            except _Foreign:
                line.close()
                if sure:
                    raise _taken(place) from None
                continue
            else:
                if answer is not None and (error := _error_of(answer)) is not None:
                    line.close()
                    raise error
                if answer is not None:
                    return answer, place, line
            line.close()
        time.sleep(_AGAIN)
    if silent:
        raise _taken(tried[0])
    at = str(tried[0]) if tried else "its place"
    raise ProcessError(
        f"Rank 0 was not to be found at {at} within {timeout:g} s (ddp_timeout): see whether it runs, and whether "
        "MASTER_ADDR and MASTER_PORT are its own."
    )


class _Silent(Exception):
    """Somebody listens and says nothing."""


class _Foreign(Exception):
    """Somebody says what rank 0 would not."""


def _talk(line: socket.socket, place: Where, mine: Card, greeted: float, answered: float) -> Card | None:
    """The answer; None where the connection ended before it."""
    line.settimeout(greeted)
    try:
        greeting = _line(line)
    except TimeoutError:
        raise _Silent from None
    except OSError:
        return None
    if not greeting:
        return None
    word, _, token = greeting.decode(errors="replace").strip().partition(" ")
    if word != _GREETING.strip() or (place.token is not None and token != place.token):
        raise _Foreign
    line.settimeout(answered)
    try:
        line.sendall(json.dumps(mine).encode() + b"\n")
        return mine if mine.get("error") else _parsed(_line(line))
    except OSError:
        return None


def _line(line: socket.socket) -> bytes:
    """One line and nothing of the next; what came of it where the connection ended."""
    got = b""
    while not got.endswith(b"\n") and len(got) < _LONGEST and (byte := line.recv(1)):
        got += byte
    return got


def _taken(place: Where) -> ConfigurationError:
    return ConfigurationError(
        f"What listens at {place} is not rank 0 of this run but another program: set MASTER_PORT to a free port."
    )


def _parsed(line: bytes) -> Card | None:
    try:
        card = json.loads(line)
    except ValueError:
        return None
    return card if isinstance(card, dict) else None


def _send(guest: socket.socket, card: Card) -> None:
    with contextlib.suppress(OSError):
        guest.settimeout(_GREETED)
        guest.sendall(json.dumps(card).encode() + b"\n")


def _as_card(error: DrivetrainError) -> Card:
    if isinstance(error, ConfigurationError):
        return {"error": list(error.problems)}
    return {"error": str(error), "lost": True}


def _error_of(card: Card) -> DrivetrainError | None:
    error = card.get("error")
    if not error:
        return None
    return ProcessError(str(error)) if card.get("lost") else ConfigurationError(error)


def ranks(numbers: Sequence[int]) -> str:
    """`rank 2`, `ranks 2 and 3`, `ranks 2, 3, 4 and 9 more`."""
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    if len(numbers) <= 4:
        return f"ranks {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"ranks {', '.join(map(str, numbers[:3]))} and {len(numbers) - 3} more"
