"""Fixtures for plugins of strangers, and for resolving them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import strangers

from drivetrain import ConfigurationError, TrainingArguments, discover
from drivetrain.resolve import Plan, resolve


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[strangers.Site]:
    """A folder on the path into which distributions are installed."""
    yield from strangers.site(tmp_path / "site", monkeypatch)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`without(kind, name)`: drivetrain's own plugin of that name is as if it were not installed."""

    def hide(kind: str, name: str) -> None:
        everything = discover.entries.__wrapped__  # what refresh() clears is the cache of the new one

        @functools.cache
        def others() -> tuple[discover.Entry, ...]:
            hidden = (kind, name, "drivetrain")
            return tuple(e for e in everything() if (e.kind, e.name, e.distribution) != hidden)

        discover.load_info.cache_clear()
        monkeypatch.setattr(discover, "entries", others)

    return hide


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., TrainingArguments]:
    def make(**values: Any) -> TrainingArguments:
        settings: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
        settings.update(values)
        return TrainingArguments(str(tmp_path / "out"), **settings)

    return make


@pytest.fixture
def plan(make_args: Callable[..., TrainingArguments]) -> Callable[..., Plan]:
    """`plan(instances=..., settings=..., **arguments)`: the plan of a run."""

    def make(*, instances: Any = (), settings: Any = None, **values: Any) -> Plan:
        return resolve(make_args(**values), instances=instances, settings=settings)

    return make


@pytest.fixture
def problems(plan: Callable[..., Plan]) -> Callable[..., tuple[str, ...]]:
    """`problems(...)`: the sentences with which the resolution of these arguments fails."""

    def make(**values: Any) -> tuple[str, ...]:
        with pytest.raises(ConfigurationError) as caught:
            plan(**values)
        return caught.value.problems

    return make
