"""Processes that fail agree on whether all of them are still there, also where one has given up by then."""

from __future__ import annotations

import threading

import pytest
from torch.distributed import HashStore, distributed_c10d

from drivetrain_plugins.strategy.deepspeed import together
from drivetrain_plugins.strategy.deepspeed.together import Together


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[Together]:
    """The same meeting as each of two processes has it, over one store."""
    store = HashStore()
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    found = [Together(2), Together(2)]
    found[1]._key = found[0]._key
    return found


def here(meeting: Together) -> bool:
    try:
        raise ValueError("this process fails")
    except ValueError:
        return meeting.here()


def test_who_does_not_fail_asks_nobody() -> None:
    assert Together(2).here()


def test_all_have_come(meetings: list[Together]) -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda m=m: found.append(here(m))) for m in meetings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True, True]


def test_who_comes_after_the_other_has_given_up_is_alone(
    meetings: list[Together], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "PATIENCE", 0.05)
    assert not here(meetings[0])
    assert not here(meetings[1])
