"""What each `hub_strategy` sends, and when, to a real HTTP server; training is as without a hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub_runs import make, result
from support.hub_server import LocalHub

from drivetrain import Trainer, TrainerCallback
from drivetrain.checkpoint import validate

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra 'huggingface' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "somebody/a-model"
PROGRESS = [f"Training in progress, step {step}" for step in (1, 2, 3, 4)]
Make = Callable[..., Trainer]


def folder_of(hub: LocalHub, path: str, target: Path) -> Path:
    """A folder of the repository, as files."""
    target.mkdir()
    for name, content in hub.repositories[REPO].items():
        if name.startswith(path + "/"):
            file = target / name.removeprefix(path + "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return target


def root(hub: LocalHub) -> set[str]:
    return {name for name in hub.repositories[REPO] if "/" not in name} - {".gitattributes"}


MODEL = {"model.safetensors", "training_args.json", "README.md"}


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_each_strategy_sends(
    hub: LocalHub, trainer: Make, alone: Any, tmp_path: Path, strategy: str
) -> None:
    made = trainer(hub_strategy=strategy, hub_always_push=True, save_total_limit=1)
    assert list(hub.repositories) == [REPO]  # known before the first step
    made.train()
    assert result(made) == alone
    output = tmp_path / "a-model"
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    if strategy == "end":
        assert hub.messages == []
        made.save_model()
        assert hub.messages == ["Model save"]
        assert root(hub) == {"model.safetensors", "README.md"}
        return
    expected = []
    for message in PROGRESS:
        expected += [message] if strategy == "every_save" else [message, f"{message}, checkpoint"]
    # What the end had to add was there already; older clients make an empty commit of that.
    assert hub.messages in (expected, [*expected, "End of training"])
    assert root(hub) == MODEL
    model = hub.repositories[REPO]["model.safetensors"]
    assert model == (output / "checkpoint-4" / "model.safetensors").read_bytes()
    folders = {name.partition("/")[0] for name in hub.repositories[REPO] if "/" in name}
    if strategy == "every_save":
        assert folders == set()
    elif strategy == "checkpoint":
        assert folders == {"last-checkpoint"}
        there = folder_of(hub, "last-checkpoint", tmp_path / "there")
        assert validate(str(there)) is None
        assert (there / "manifest.json").read_bytes() == (output / "checkpoint-4/manifest.json").read_bytes()
    else:
        assert folders == {f"checkpoint-{step}" for step in (1, 2, 3, 4)}
        for step in (1, 2, 3, 4):  # three of them are deleted here
            assert validate(str(folder_of(hub, f"checkpoint-{step}", tmp_path / str(step)))) is None


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_what_was_pushed_goes_on(hub: LocalHub, trainer: Make, alone: Any, tmp_path: Path) -> None:
    """`last-checkpoint`, fetched by huggingface_hub, resumes exactly, and pushes into the same repository."""
    first = trainer(hub_strategy="checkpoint", hub_always_push=True)
    first.add_callback(StopAt(2))
    first.train()
    fetched = folder_of(hub, "last-checkpoint", tmp_path / "last-checkpoint")
    sent = len(hub.commits)
    made = trainer(hub_strategy="checkpoint", hub_always_push=True)
    made.train(resume_from_checkpoint=str(fetched))
    assert result(made)[1] == alone[1]
    assert list(hub.repositories) == [REPO]
    assert hub.messages[sent : sent + 4] == [
        text for step in (3, 4) for text in (PROGRESS[step - 1], PROGRESS[step - 1] + ", checkpoint")
    ]


class AtTheEnd(TrainerCallback):
    """Looks at the server when the last step is done, and lets it go."""

    def __init__(self, hub: LocalHub) -> None:
        self.hub = hub
        self.held: list[tuple[int, int]] = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hub.wait_held()
        self.held.append((state.global_step, self.hub.held))
        # Uploads go one after another: had anybody waited for the first until its time was over, others would be there.
        assert self.hub.commits == []
        self.hub.heal()


@pytest.mark.parametrize(
    ("strategy", "always"),
    [("every_save", False), ("checkpoint", False), ("all_checkpoints", False), ("all_checkpoints", True)],
)
def test_a_save_while_another_is_under_way(
    hub: LocalHub, trainer: Make, alone: Any, tmp_path: Path, strategy: str, always: bool
) -> None:
    """The server holds the first upload until training is over, and then cuts it off: no step has waited for it."""
    hub.fail("blob", stall=True, times=1)
    made = trainer(hub_strategy=strategy, hub_always_push=always, save_total_limit=1)
    watch = AtTheEnd(hub)
    made.add_callback(watch)
    made.train()
    assert watch.held == [(4, 1)]
    assert result(made) == alone
    messages = hub.messages
    if always:
        assert set(PROGRESS[1:]) <= set(messages)
    else:
        assert not set(PROGRESS[1:]) & set(messages)
    model = (tmp_path / "a-model" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert hub.repositories[REPO]["model.safetensors"] == model
    if strategy == "checkpoint":
        assert validate(str(folder_of(hub, "last-checkpoint", tmp_path / "there"))) is None
        manifest = (tmp_path / "a-model" / "checkpoint-4" / "manifest.json").read_bytes()
        assert (tmp_path / "there" / "manifest.json").read_bytes() == manifest
    if strategy == "all_checkpoints":
        # Of those that were skipped the ones that are still here: the first, which was under way, and the last.
        steps = (1, 2, 3, 4) if always else (1, 4)
        for step in steps:
            assert validate(str(folder_of(hub, f"checkpoint-{step}", tmp_path / str(step)))) is None


def test_by_epochs_while_a_thread_writes(hub: LocalHub, trainer: Make, tmp_path: Path) -> None:
    made = trainer(
        hub_strategy="all_checkpoints",
        hub_always_push=True,
        save_async=True,
        save_strategy="epoch",
        evaluation_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=0.5,
    )
    made.train()
    assert hub.messages[:4] == [
        "Training in progress, epoch 1",
        "Training in progress, epoch 1, checkpoint",
        "Training in progress, epoch 2",
        "Training in progress, epoch 2, checkpoint",
    ]
    best = Path(made.state.best_model_checkpoint or "")
    assert hub.repositories[REPO]["model.safetensors"] == (best / "model.safetensors").read_bytes()


def test_parts_of_an_earlier_model_do_not_stay(hub: LocalHub, trainer: Make, tmp_path: Path) -> None:
    trainer(hub_strategy="every_save", max_steps=1, max_shard_size="36B").train()
    shards = {name for name in root(hub) if name.startswith("model-")}
    assert len(shards) == 2
    assert "model.safetensors.index.json" in root(hub)
    make(tmp_path / "elsewhere", hub_strategy="every_save", max_steps=1, learning_rate=0.1).train()
    assert root(hub) >= MODEL
    assert not shards & root(hub)


def test_a_checkpoint_that_is_changed_in_its_place_is_not_sent(
    hub: LocalHub, trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody writes into a file of a checkpoint that waits for its turn: what is sent are whole checkpoints alone."""

    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                with open(tmp_path / "a-model" / "checkpoint-2" / "model.safetensors", "r+b") as file:
                    file.seek(-1, 2)
                    file.write(b"\x77")
                hub.heal()

    hub.fail("blob", stall=True, times=1)
    made = trainer(hub_strategy="all_checkpoints", hub_always_push=True)
    made.add_callback(Spoil())
    made.train()
    assert {name.partition("/")[0] for name in hub.repositories[REPO] if "/" in name} == {
        "checkpoint-1",
        "checkpoint-3",
        "checkpoint-4",
    }
    assert "checkpoint-2 (it is not sent, since its model.safetensors has changed" in caplog.text
    assert "Send it by: drivetrain push " in caplog.text
    assert "--checkpoint 2 --with-state" in caplog.text


def test_where_there_are_no_hard_links(hub: LocalHub, trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a file system without them, which needs a device of its own to be mounted."""
    import errno
    import os

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    trainer(hub_strategy="all_checkpoints", hub_always_push=True, save_total_limit=1).train()
    assert {name.partition("/")[0] for name in hub.repositories[REPO] if "/" in name} == {
        f"checkpoint-{step}" for step in (1, 2, 3, 4)
    }


def test_names_that_scripts_reach_for(hub: LocalHub, trainer: Make) -> None:
    seen = []

    class Own(Trainer):
        def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
            seen.append(Path(checkpoint_folder).name)
            super()._push_from_checkpoint(checkpoint_folder)

    made = trainer(hub_strategy="every_save")
    made.__class__ = Own
    assert made.hub_model_id == REPO
    made.train()
    assert seen == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert made.push_in_progress is not None
    made._finish_current_push()
    assert made.push_in_progress.is_done()
    assert made.push_in_progress.jobs == []
    made.create_model_card("en", "mit")
    assert "license: mit" in (Path(made.args.output_dir) / "README.md").read_text()
