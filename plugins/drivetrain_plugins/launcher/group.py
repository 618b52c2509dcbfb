"""The process group: made when all have met, and ended at exit by whoever made it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # they are documented

from drivetrain import peers
from drivetrain.errors import ConfigurationError, ProcessError
from drivetrain.processes import Processes, attempt_and_launch
from drivetrain_plugins.launcher.devices import check_not_shared, choose, identity
from drivetrain_plugins.launcher.ending import end_at_exit
from drivetrain_plugins.launcher.environment import Place
from drivetrain_plugins.launcher.interfaces import tell_gloo
from drivetrain_plugins.launcher.meeting import Card, Host, Where, attend, listen
from drivetrain_plugins.launcher.news import News
from drivetrain_plugins.launcher.renewal import Renewal

logger = logging.getLogger("drivetrain")

# Where rank 0 tells through the store of torchrun's agent at which port it waits.
_KEY = "drivetrain/rank0"


def start(place: Place, args: Any) -> Processes:
    """Meets the others, makes the group, and says who is who.

    Raises:
        ConfigurationError: on every rank alike, where one of them cannot take part.
        ProcessError: somebody did not come within `ddp_timeout`.
    """
    if dist.is_initialized():
        return _of_somebodys_group(place, args)
    _tell_libraries(place)
    mine: Card = {"rank": place.rank, "size": place.size, "run": place.run, "host": socket.gethostname()}
    mine["attempt"], mine["launch"] = attempt_and_launch()
    mine["nodes"] = _nodes_before()
    device: torch.device | None = None
    backend = "gloo"
    try:
        backend, device = choose(place, args)
        mine |= {"backend": backend, "device": identity(device), "device_name": str(device)}
    except ConfigurationError as error:
        mine["error"] = list(error.problems)
    timeout = timedelta(seconds=args.ddp_timeout)
    agreed, store, news = _meet(place, mine, timeout)
    assert device is not None  # an error on a card is raised by the meeting
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    with peers.watched():
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timeout,
            device_id=device if backend == "nccl" else None,
        )
    end_at_exit(news, store)
    bound = device if backend == "nccl" else None
    renewal = Renewal(place.rank, place.size, backend, timeout, bound, store, news)
    return replace(_processes(place, device, agreed["attempt"], agreed["launch"]), renew=renewal)


def _processes(place: Place, device: torch.device, attempt: int, launch: str | None) -> Processes:
    return Processes(
        device,
        place.rank,
        place.local_rank,
        place.size,
        int(device.type == "cuda"),
        _barrier,
        attempt=attempt,
        launch=launch,
        local_world_size=place.local_size,
        node=place.node,
    )


def _barrier() -> None:
    with peers.watched():
        dist.barrier()


def _of_somebodys_group(place: Place, args: Any) -> Processes:
    """The script has made the group itself; it ends it too."""
    _, device = choose(place, args)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return _processes(place, device, *attempt_and_launch())


def _meet(place: Place, mine: Card, timeout: timedelta) -> tuple[Card, Store, News]:
    """What was agreed, the group's store, and the connections for news."""
    seconds = timeout.total_seconds()
    if place.rank == 0:
        try:
            listener = listen(0 if place.through_store else place.port)
        except ConfigurationError as error:
            raise ConfigurationError(mine.get("error") or error.problems) from error
        port = listener.getsockname()[1]
        host = Host(listener, mine, f"{place.address}:{port}", seconds)
        agents = _publish(place, port, host.token, timeout) if place.through_store else None
        store = TCPStore("127.0.0.1", 0, None, True, timeout, wait_for_workers=False)
        agreed = host.meet(lambda cards: _agree(cards) | {"store": store.port})
        del agents
        tell_gloo(host.lines.values())
        return agreed, store, News(0, place.size, host.lines)
    agents = _agents_store(place, timeout) if place.through_store else None
    agreed, found, line = attend(
        lambda: [Where(place.address, place.port)] if agents is None else _published(agents),
        mine,
        seconds,
        sure=agents is None,
    )
    tell_gloo([line])
    with peers.watched():
        store = TCPStore(found.address, agreed["store"], None, False, timeout)
    return agreed, store, News(place.rank, place.size, {0: line})


def _agree(cards: Sequence[Card]) -> Card:
    """What all are told: the launch is rank 0's, and the attempt the highest that any agent counts.

    The agent of a machine counts the failures of its own workers, so that the counts differ after a machine's
    failure; and a restart because a machine was added or lost is counted by none.
    """
    check_not_shared(cards)
    attempt = max(int(card["attempt"]) for card in cards)
    grown = any(card["nodes"] for card in cards)
    return {"attempt": attempt or int(grown), "launch": cards[0]["launch"]}


def _nodes_before() -> bool:
    """Whether torchrun's agent has started this worker before, among another number of machines.

    It is noted beside the agent's own files, which it deletes when it ends.
    """
    nodes, path = os.environ.get("GROUP_WORLD_SIZE"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not nodes or not path or len(Path(path).parents) < 3:
        return False
    note = Path(path).parents[2] / f"drivetrain-nodes-{os.environ.get('LOCAL_RANK', '0')}"
    try:
        before = note.read_text(encoding="utf-8") if note.exists() else nodes
        note.write_text(nodes, encoding="utf-8")
    except OSError:
        return False
    return before != nodes


def _agents_store(place: Place, timeout: timedelta) -> Store:
    try:
        return TCPStore(place.address, place.port, None, False, timeout)
    except dist.DistError as error:
        raise ProcessError(
            f"The store of torchrun's agent at {place.address}:{place.port} does not answer: see whether the agent "
            "there still runs."
        ) from error


def _publish(place: Place, port: int, token: str, timeout: timedelta) -> Store:
    store = _agents_store(place, timeout)
    found = {"port": port, "token": token, "addresses": _own_addresses(place)}
    store.set(_KEY, json.dumps(found))
    return store


def _published(store: Store) -> Iterable[Where]:
    """Where rank 0 is, as far as it has said so. After a restart the place of the one before may still stand there."""
    with peers.watched():
        if not store.check([_KEY]):
            return []
        found = json.loads(store.get(_KEY))
    return [Where(address, found["port"], found["token"]) for address in found["addresses"]]


def _own_addresses(place: Place) -> list[str]:
    """By what the other machines may reach this one, the likeliest first."""
    if place.local_size == place.size:
        return ["127.0.0.1"]
    found = []
    with contextlib.suppress(OSError):
        family, *_, target = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing, and shows the address that such packets would leave from
            found.append(probe.getsockname()[0])
    found += [place.address, socket.gethostname()]
    remote = [address for address in found if not address.startswith("127.") and address != "::1"]
    return list(dict.fromkeys(remote or found))


def _tell_libraries(place: Place) -> None:
    """Gives the environment torchrun's variables too, which engines read whoever started the processes."""
    told = {
        "RANK": place.rank,
        "WORLD_SIZE": place.size,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_size,
        "MASTER_ADDR": place.address,
        "MASTER_PORT": place.port,
    }
    for name, value in told.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
