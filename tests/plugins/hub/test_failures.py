"""A hub in trouble: the run goes on, its numbers are those of a run without, and the end says what is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub_runs import TOKEN, result
from support.hub_server import LocalHub

from drivetrain import HubError, Trainer, TrainerCallback
from drivetrain.hub import uploads

pytest.importorskip("huggingface_hub", reason="the extra 'huggingface' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "somebody/a-model"
Make = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PAUSES", (0.0, 0.0, 0.0))


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, what: Callable[[], object]) -> None:
        self.step, self.what = step, what

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what()


def checkpoints(hub: LocalHub) -> set[str]:
    return {name.partition("/")[0] for name in hub.repositories[REPO] if "/" in name}


ALL = {f"checkpoint-{step}" for step in (1, 2, 3, 4)}


def test_trouble_that_passes(
    hub: LocalHub, trainer: Make, alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many requests, a server error, a lost race and a connection that drops, each in the midst of the run."""
    faults = [
        hub.fail("preupload", 429, headers={"Retry-After": "0"}, times=1, after=1),
        hub.fail("blob", drop=True, times=1, after=1),
        hub.fail("commit", 500, times=1, after=1),
    ]
    made = trainer(hub_strategy="all_checkpoints", hub_always_push=True, save_total_limit=1)
    made.add_callback(At(3, lambda: faults.append(hub.fail("tree", 503, times=1))))
    made.add_callback(At(3, lambda: faults.append(hub.fail("commit", 412, times=1))))
    made.train()
    assert all(fault.met for fault in faults)
    assert result(made) == alone
    assert checkpoints(hub) == ALL
    assert "did not reach the hub: " in caplog.text
    assert "Not at the hub" not in caplog.text


@pytest.mark.parametrize(
    ("route", "status", "how", "said"),
    [
        ("commit", 500, {}, "the hub is in trouble (500)"),
        ("commit", 429, {}, "the hub asks for fewer requests (429)"),
        ("commit", 409, {}, f"somebody else wrote to {REPO} at the same time (409)"),
        (
            "commit",
            401,
            {},
            "the hub refused it (401): log in with 'hf auth login', or set HF_TOKEN to a token",
        ),
        ("commit", 0, {"drop": True}, "the hub did not answer ("),
        ("tree", 404, {}, f"there is no repository {REPO} any more, or this token may not see it (404)"),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, int)) else "",
)
def test_trouble_that_stays(
    hub: LocalHub,
    trainer: Make,
    alone: Any,
    caplog: pytest.LogCaptureFixture,
    route: str,
    status: int,
    how: dict[str, Any],
    said: str,
) -> None:
    made = trainer(hub_strategy="checkpoint", hub_always_push=True)
    hub.fail(route, status, **how)
    made.train()
    assert result(made) == alone
    assert hub.commits == []
    (warned,) = [record.getMessage() for record in caplog.records if " did not reach" in record.getMessage()]
    assert warned.startswith("The model of step 1 did not reach the hub: " + said)
    (told,) = [record.getMessage() for record in caplog.records if "Not at the hub" in record.getMessage()]
    output = made.args.output_dir
    assert said in told
    assert "checkpoint-4 (" in told
    assert told.endswith(
        f"Send it by: drivetrain push {output} --checkpoint 4 --with-state; drivetrain push {output}"
    )
    assert TOKEN not in caplog.text
    with pytest.raises(
        HubError, match=r"^The model is not at the hub: .* Send it by: drivetrain push "
    ) as caught:
        made.push_to_hub()
    assert TOKEN not in str(caught.value)
    attempts = hub.faults[0].met
    assert (
        attempts > 12 if status not in (401, 404) else attempts <= 12
    )  # what cannot go well is not tried again
    hub.heal()
    made.push_to_hub("healed")
    assert hub.messages == ["healed"]


def test_a_hub_that_stands_still(
    hub: LocalHub, trainer: Make, alone: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """It takes a request and never answers: the end waits as long as `hub_patience`, says so, and leaves."""
    made = trainer(hub_strategy="checkpoint", hub_patience=0.5)
    hub.fail("blob", stall=True)
    made.train()
    assert hub.held == 1
    assert result(made) == alone
    assert hub.commits == []
    assert "the hub has not taken it in 1 s" in caplog.text or "has not taken it in 0 s" in caplog.text
    assert f"drivetrain push {made.args.output_dir}" in caplog.text
    made.save_model()  # does not wait another time for a hub that is known to stand still
    assert not [path.name for path in (tmp_path / "a-model").iterdir() if path.name.startswith(".")]


def test_too_many_for_the_disk(
    hub: LocalHub,
    trainer: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """What waits for a hub that is away is bounded; what was dropped is said, also that it cannot be sent any more."""
    monkeypatch.setattr(uploads, "MOST_HELD", 3)
    hub.fail("blob", stall=True, times=1)
    made = trainer(hub_strategy="all_checkpoints", hub_always_push=True, save_total_limit=1)
    kept: list[int] = []
    made.add_callback(At(4, lambda: kept.append(len(list((tmp_path / "a-model").glob(".*.hub-*"))))))
    made.add_callback(At(4, hub.heal))
    made.train()
    assert kept[0] <= 4
    assert checkpoints(hub) < ALL
    assert "checkpoint-4" in checkpoints(hub)
    assert "(too many others waited for the hub as well)" in caplog.text
    assert "checkpoint-1 (too many others" in caplog.text or "the model of step 1 (too many" in caplog.text
    assert "checkpoint-1 has been deleted since" in caplog.text


def test_a_hub_that_is_away_when_a_run_goes_on(
    hub: LocalHub, trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """To a new run that is an error at once; one that has checkpoints goes on, and makes the repository later."""
    hub.fail("create", 503)
    from drivetrain import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"push_to_hub=True: the hub refused .* \(503\)"):
        trainer(hub_strategy="checkpoint")
    trainer(push_to_hub=False, hub_token=None, hub_patience=600.0).train()
    made = trainer(hub_strategy="checkpoint", hub_patience=30.0)
    assert "The run goes on, and asks again when it has something to send." in caplog.text
    made.add_callback(At(4, hub.heal))
    made.train(resume_from_checkpoint=str(Path(made.args.output_dir) / "checkpoint-3"))
    assert "model.safetensors" in hub.repositories[REPO]


def test_an_error_in_the_run_does_not_wait(
    hub: LocalHub, trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    hub.fail("blob", stall=True)
    made = trainer(hub_strategy="every_save")
    made.add_callback(At(2, hub.wait_held))
    made.add_callback(At(3, fail))
    with pytest.raises(RuntimeError, match="out of luck"):
        made.train()
    assert hub.held == 1
    assert (
        "Not at the hub: the model of step 1 (it was still on its way). Send it by: drivetrain push"
        in caplog.text
    )


def test_a_disk_that_has_no_room_for_the_final_model(
    hub: LocalHub, trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Trainer):
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            if output_dir is None:
                raise OSError(28, "No space left on device")
            super().save_model(output_dir, _internal_call)

    made = trainer(hub_strategy="every_save")
    made.__class__ = Full
    made.train()
    assert "model.safetensors" in hub.repositories[REPO]
    assert "The final model is not sent, since it could not be written: " in caplog.text


def test_a_card_that_cannot_be_made(
    hub: LocalHub,
    trainer: Make,
    alone: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for a hub's plugin that has a defect: it costs the model its upload, and the run nothing."""
    from drivetrain_plugins.hub import huggingface

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(huggingface, "model_card", broken)
    made = trainer(hub_strategy="checkpoint", hub_always_push=True)
    made.train()
    assert result(made) == alone
    assert "The model of checkpoint-1 is not sent to the hub: KeyError: 'broken'" in caplog.text
    assert "last-checkpoint/manifest.json" in hub.repositories[REPO]


SCRIPT = """
import sys
from pathlib import Path
from support.hub_runs import make

trainer = make(Path(sys.argv[1]), hub_strategy="end", hub_patience=float(sys.argv[2]), max_shard_size="36B")
trainer.train()
future = trainer.push_to_hub("at the exit", blocking=False)
print("LAST", future.done())
"""


def run_script(folder: Path, patience: float) -> tuple[str, str]:
    environment = {
        **os.environ,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(patience)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_script_that_ends_while_an_upload_is_under_way(hub: LocalHub, tmp_path: Path) -> None:
    hub.fail("create", after=1, status=503)
    shown, _ = run_script(tmp_path, 60.0)
    assert "LAST False" in shown
    assert hub.messages == ["at the exit"]
    hub.fail("blob", stall=True)
    hub.blobs.clear()
    hub.repositories.clear()
    hub.faults = hub.faults[1:]
    shown, errors = run_script(tmp_path / "second", 1.0)
    assert "LAST False" in shown
    assert hub.messages == ["at the exit"]
    assert (
        "Not at the hub: the model (the hub has not taken it in 1 s). Send it by: drivetrain push" in errors
    )
    assert TOKEN not in shown + errors
