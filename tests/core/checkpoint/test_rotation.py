"""Which checkpoint is the last, and which ones go."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.checkpoint import (
    CheckpointContents,
    last_checkpoint,
    recover,
    rotate,
    save_checkpoint,
    sweep,
    validate,
)
from drivetrain.checkpoint import checkpoints as listed


def save(output: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(
            str(output / f"checkpoint-{step}"), CheckpointContents(trainer_state={"global_step": step})
        )


def spoil(output: Path, step: int) -> None:
    (output / f"checkpoint-{step}" / "run.json").write_text("{}")


def left(output: Path) -> list[int]:
    return [step for step, _ in listed(str(output))]


def place(output: Path, step: int) -> str:
    return str(output / f"checkpoint-{step}")


def test_the_last_is_the_highest_number_not_the_last_word(output: Path) -> None:
    save(output, 1000, 200, 30)
    assert last_checkpoint(str(output)) == place(output, 1000)
    assert left(output) == [30, 200, 1000]


def test_what_is_passed_over_is_said_with_the_reason(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(output, 1, 2, 3)
    spoil(output, 3)
    (output / "checkpoint-2" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "drivetrain"):
        assert last_checkpoint(str(output)) == place(output, 1)
    assert "checkpoint-3 is passed over: its run.json has 3 bytes of" not in caplog.text
    assert "checkpoint-3 is passed over: its run.json has " in caplog.text
    assert "checkpoint-2 is passed over: it has no manifest.json" in caplog.text


def test_where_there_is_none_there_is_none(output: Path) -> None:
    assert last_checkpoint(str(output / "nowhere")) is None
    (output / "checkpoint-x").mkdir()
    (output / "checkpoint-5.bak").mkdir()
    (output / "checkpoint-6").write_text("a file")
    (output / "checkpoint-٣").mkdir()
    assert last_checkpoint(str(output)) is None


def reference(steps: list[int], limit: int, best: int | None) -> list[int]:
    """What transformers 4.34.0 keeps, from its documentation of save_total_limit and load_best_model_at_end."""
    if len(steps) <= limit:
        return steps
    if best is not None and limit == 1 and steps[-1] != best:
        limit = 2
    order = [step for step in steps if step != best or step == steps[-1]]
    if best is not None and best != steps[-1]:
        order.insert(len(order) - 1, best)  # just before the latest
    return sorted(order[len(order) - limit :])


@pytest.mark.parametrize("best", [None, 5, 10, 20, 110])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_rotation_is_that_of_the_documented_trainer(output: Path, limit: int, best: int | None) -> None:
    steps = [5, 10, 20, 110]
    save(output, *steps)
    where = place(output, best) if best is not None else None
    gone = rotate(str(output), limit, best=where, latest=place(output, 110))
    assert left(output) == reference(steps, limit, best)
    assert sorted(gone) == sorted(place(output, step) for step in set(steps) - set(left(output)))


@pytest.mark.parametrize("limit", [None, 0, -1])
def test_no_limit_deletes_nothing(output: Path, limit: int | None) -> None:
    save(output, 1, 2)
    assert rotate(str(output), limit) == []


def test_best_is_found_however_its_path_is_written(output: Path) -> None:
    save(output, 1, 2, 3)
    rotate(str(output), 1, best=os.path.relpath(place(output, 1)) + "/")
    assert left(output) == [1, 3]


def test_the_last_valid_one_is_never_deleted(output: Path) -> None:
    save(output, 1, 2, 3, 4)
    spoil(output, 3)
    spoil(output, 4)
    rotate(str(output), 1)
    assert left(output) == [2, 4]
    assert last_checkpoint(str(output)) == place(output, 2)


def test_a_checkpoint_just_written_outlives_those_of_a_run_that_went_further(output: Path) -> None:
    save(output, 10, 20, 30, 15)
    rotate(str(output), 2, latest=place(output, 15))
    assert left(output) == [10, 15]


def test_links_and_strangers_are_left_alone(output: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (output / "checkpoint-0").symlink_to(precious)
    (output / "checkpoint-mine").mkdir()
    save(output, 1, 2, 3)
    rotate(str(output), 1)
    assert sorted(os.listdir(output)) == ["checkpoint-0", "checkpoint-3", "checkpoint-mine"]
    assert precious.exists()


def test_what_a_killed_run_left_is_put_back_or_swept(output: Path) -> None:
    save(output, 1, 2, 3)
    os.rename(place(output, 3), output / ".checkpoint-3.old-0123abcd")  # killed between the two renames
    os.rename(place(output, 1), output / ".checkpoint-1.del-0123abcd")  # killed in a rotation
    (output / ".checkpoint-4.tmp-0123abcd").mkdir()
    (output / ".checkpoint-4.notours").mkdir()
    recover(str(output))
    assert last_checkpoint(str(output)) == place(output, 3)
    sweep(str(output))
    assert sorted(os.listdir(output)) == [".checkpoint-4.notours", "checkpoint-2", "checkpoint-3"]


WRONG = {
    "no manifest": "it has no manifest.json",
    "truncated": "has 5 bytes of",
    "a flipped bit": "has changed since it was written",
    "a missing file": "its run.json is missing",
    "a link": "its run.json is a link",
    "a link to the folder": None,  # no folder of ours: it is not even named
    "an empty folder": "it has no manifest.json",
    "a damaged manifest": "its manifest.json is damaged",
}


def harm(folder: Path, how: str) -> None:
    file, manifest = folder / "run.json", folder / "manifest.json"
    if how == "no manifest":
        manifest.unlink()
    elif how == "truncated":
        os.truncate(file, 5)
    elif how == "a flipped bit":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif how == "a missing file":
        file.unlink()
    elif how == "a link":
        file.rename(folder.parent / "elsewhere.json")
        file.symlink_to(folder.parent / "elsewhere.json")
    elif how == "a link to the folder":
        folder.rename(folder.parent / "elsewhere")
        folder.symlink_to(folder.parent / "elsewhere")
    elif how == "an empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        manifest.write_text(manifest.read_text().replace('"size": ', '"size": 1'))


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_with_it_is_said(output: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    save(output, 1, 2)
    harm(output / "checkpoint-2", how)
    with caplog.at_level(logging.WARNING, "drivetrain"):
        assert last_checkpoint(str(output)) == place(output, 1)
    if (reason := WRONG[how]) is not None:
        (line,) = caplog.messages
        assert line.startswith(f"{place(output, 2)} is passed over: ")
        assert reason in line
    else:
        assert not caplog.messages


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rotation_never_takes_the_last_valid_one(data: st.DataObject, sealed: Path) -> None:
    """Whatever is valid, the best or the latest; and it deletes no more than the limit asks for, the oldest first."""
    steps = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=7, unique=True).map(sorted), "steps")
    harms = data.draw(
        st.lists(st.sampled_from([None, *WRONG]), min_size=len(steps), max_size=len(steps)), "harms"
    )
    limit = data.draw(st.integers(1, 8), "limit")
    best = data.draw(st.one_of(st.none(), st.sampled_from([*steps, 99])), "best")
    latest = data.draw(st.one_of(st.none(), st.sampled_from(steps)), "latest")
    with tempfile.TemporaryDirectory() as name:
        output = Path(name)
        for step, how in zip(steps, harms, strict=True):
            shutil.copytree(sealed, output / f"checkpoint-{step}")
            if how is not None and how not in ("a link", "a link to the folder"):
                harm(output / f"checkpoint-{step}", how)
        valid = {step for step in steps if validate(place(output, step)) is None}
        fresh = latest in valid and data.draw(st.booleans(), "fresh")
        gone = rotate(
            name,
            limit,
            best=place(output, best) if best is not None else None,
            latest=place(output, latest) if latest is not None else None,
            fresh=fresh,
        )
        stay = left(output)
        assert sorted(gone) == sorted(place(output, step) for step in set(steps) - set(stay))
        assert not [entry for entry in os.listdir(name) if entry.startswith(".")]
        newest = latest if latest is not None else steps[-1]
        spared = {step for step in (newest, best) if step in steps}
        assert spared <= set(stay)
        assert valid & set(stay) or not valid
        # One more than the limit stays only where it is the best, or the last valid one.
        assert len(stay) <= max(limit, len(spared)) + (not valid & spared)
        assert len(stay) >= min(limit, len(steps))
        order = sorted(steps, key=lambda step: (step <= newest, step))
        kept = [step for step in order if step in stay and step not in spared]
        if valid & set(stay) - spared and len(stay) > max(limit, len(spared)):
            kept.remove(max(valid & set(kept), key=order.index))
        assert kept == [step for step in order if step not in spared][len(steps) - len(spared) - len(kept) :]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    save(folder, 1)
    return folder / "checkpoint-1"
