"""Which checkpoint is the last, and which ones go."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from drivetrain.checkpoint import CheckpointContents, last_checkpoint, recover, rotate, save_checkpoint, sweep
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
