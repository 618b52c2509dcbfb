"""Training runs whose calls on files fail: with on_save_error="warn" they go on, and lose a checkpoint at most."""

from __future__ import annotations

import errno
import os

from drivetrain.checkpoint import checkpoints, validate
from durability.checking import digests
from durability.forks import Child, Place, warm_up

SETTINGS = {"load_best_model_at_end": False, "metric_for_best_model": None, "on_save_error": "warn"}
ERRORS = (errno.ENOSPC, errno.EIO)


def failing_runs(root: str, stride: int) -> dict[str, int]:
    """At every `stride`-th call of the second and third save and of the run's end, under both ways of saving."""
    warm_up(root)
    counts = {"runs": 0, "lost": 0, "stopped": 0}
    places = 0

    def place() -> Place:
        nonlocal places
        places += 1
        return Place(root, f"{places:05d}")

    kept = place()
    child = Child(kept, {**SETTINGS, "save_total_limit": None})
    assert child.ends_well(), kept.last_words()
    for asynchronous in (False, True):
        settings = {**SETTINGS, "save_async": asynchronous}
        whole = place()
        child = Child(whole, settings)
        assert child.ends_well(), whole.last_words()
        for call in whole.control.calls()[stride::stride]:
            for on_error in ("warn", "stop"):
                tried = place()
                number = ERRORS[counts["runs"] % len(ERRORS)]
                tried.control.arm(tried.work, "fail", call.number, number)
                child = Child(tried, {**settings, "on_save_error": on_error})
                what = f"{on_error}, save_async={asynchronous}, {errno.errorcode[number]} at {call}"
                assert child.ends(), f"{what}: it hangs"
                words = tried.last_words()
                if on_error == "stop":
                    counts["stopped"] += stopped(tried, child, settings, what)
                else:
                    assert child.went_well, f"{what}\n{words}"
                compare(tried, whole, kept, what)
                saved = {step for word, step in tried.noted() if word == "saved"}
                counts["lost"] += on_error == "warn" and saved != {2, 4, 6, 8, 10, 12}
                counts["runs"] += 1
                tried.remove()
    return counts


def stopped(tried: Place, child: Child, settings: dict[str, object], what: str) -> bool:
    """A run that ended with the error goes on when it is started again."""
    if child.went_well:
        return False
    words = tried.last_words()
    assert "drivetrain.errors.CheckpointError: Checkpoint checkpoint-" in words, f"{what}\n{words}"
    assert not [name for name in os.listdir(tried.out) if ".tmp-" in name], what
    tried.control.arm(tried.work)
    again = Child(tried, settings)
    assert again.ends_well(), f"{what}\n{tried.last_words()}"
    return True


def compare(tried: Place, whole: Place, kept: Place, what: str) -> None:
    one, other = tried.outcome(), whole.outcome()
    assert one == other, f"{what}: {[key for key in one if one[key] != other[key]]}"
    found, expected = digests(tried.out), digests(kept.out)
    for step, folder in checkpoints(tried.out):
        assert validate(folder) is None, f"{what}: {folder}"
        name = f"checkpoint-{step}"
        # Where the weights' file could not be read back, they were written a second time, beside it.
        again = found[name].pop("weights.safetensors", None)
        assert again in (None, expected[name]["model.safetensors"]), f"{what}: {name}"
        assert found[name] == expected[name], f"{what}: {name}"
    there = [step for step, _ in checkpoints(tried.out)]
    assert there[-1:] >= [10], f"{what}: {there}"
