"""No argument is silent: set, each changes what is seen of a run, or says that it does nothing, or is an error."""

from __future__ import annotations

import functools
import inspect
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.argument_scenes import OBJECTS, SCENES
from support.observing import PLACES, Observation, observe

from drivetrain import Trainer
from drivetrain.arguments import declared
from drivetrain.arguments.aliases import ALIASES
from drivetrain.errors import ConfigurationError

TABLE = tomllib.loads((Path(__file__).parent / "effects.toml").read_text(encoding="utf-8"))
OUTCOMES = ("changes", "inert", "error", "like", "elsewhere")

Case = dict[str, Any]


def cases() -> Iterator[Any]:
    for section in ("effects", "trainer"):
        for name, entries in TABLE[section].items():
            for number, case in enumerate(entries):
                if "elsewhere" not in case:
                    word = f"{'Trainer ' if section == 'trainer' else ''}{name}"
                    yield pytest.param(name, case, id=f"{word} {number}" if number else word)


def brought(value: Any, folder: Path) -> Any:
    """A value of the table, with its objects made and its folder named."""
    if isinstance(value, str):
        return OBJECTS[value[1:]]() if value.startswith("@") else value.replace("FOLDER", str(folder))
    return value


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Observes a scene under settings, once for all that ask for it."""

    @functools.cache
    def once(scene: str, written: str, operations: bool) -> Observation:
        folder = tmp_path_factory.mktemp(scene)
        settings = {name: brought(value, folder) for name, value in json.loads(written).items()}
        return observe(lambda found, below: SCENES[scene](found, below, **settings), folder, operations)

    def look(scene: str, settings: dict[str, Any], operations: bool) -> Observation:
        return once(scene, json.dumps(settings, sort_keys=True), operations)

    return look


@pytest.mark.parametrize(("name", "case"), list(cases()))
def test_it_is_not_silent(seen: Any, name: str, case: Case) -> None:
    if "needs" in case:
        pytest.importorskip(case["needs"])
    places = case.get("changes", "").split()
    scene, beside = case.get("scene", "train"), case.get("beside", {})
    wanted = case["with"] if "with" in case else {name: case["value"]}
    operations = "operations" in places
    changed = seen(scene, beside | wanted, operations)
    if "error" in case:
        assert isinstance(changed.error, ConfigurationError), changed.messages
        assert case["error"] in str(changed.error)
        assert changed.weights is None or not changed.log, "the error comes before the first step"
        return
    plain = seen(scene, beside | case.get("like", {}), operations)
    different = plain.differences(changed)
    if places:
        assert set(places) <= set(different), f"without effect on {set(places) - set(different)}"
        if "says" in case:
            assert changed.said(case["says"]), changed.messages
            assert not plain.said(case["says"])
        return
    sentence = case.get("inert", case.get("warns"))
    if sentence is None:
        assert different == []
        return
    assert different == ["messages"]
    more = list(changed.messages)
    for message in plain.messages:
        more.remove(message)
    assert len(more) == 1, more
    assert sentence in more[0]
    assert more[0].startswith("WARNING: " if "inert" in case else "FutureWarning: "), more


@pytest.mark.parametrize(
    "scene", sorted({case.get("scene", "train") for _, case in (p.values for p in cases())})
)
def test_a_run_is_seen_alike_twice(tmp_path: Path, scene: str) -> None:
    """What differs by itself would show an effect that is none."""
    one, two = (
        observe(lambda found, below: SCENES[scene](found, below), folder)
        for folder in (tmp_path / "one", tmp_path / "two")
        if folder.mkdir() is None
    )
    assert one.differences(two) == []


def test_every_argument_is_in_the_table() -> None:
    assert list(TABLE["effects"]) == list(declared())
    assert set(TABLE["trainer"]) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}


def test_every_case_is_whole() -> None:
    """It sets what is no default, and says one thing of what must come of it."""
    tried = set()
    for section in ("effects", "trainer"):
        for name, entries in TABLE[section].items():
            for case in entries:
                assert sum(outcome in case for outcome in OUTCOMES) == 1, name
                assert set(case.get("changes", "").split()) <= set(PLACES), name
                if "elsewhere" in case:
                    assert name in TABLE["tests"], f"{name}: which test shows it?"
                    continue
                assert ("value" in case) != ("with" in case), name
                if (
                    section == "effects" and case.get("scene") != "command"
                ):  # where `do_train` is on unless written
                    assert case["value"] != case.get("beside", {}).get(name, declared()[name][1].default), (
                        name
                    )
                tried.add(case.get("scene", "train"))
                if name in ALIASES and "error" not in case:
                    assert "like" in case, f"{name} is another spelling"
    assert tried == set(SCENES)
