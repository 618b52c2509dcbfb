"""`drivetrain push`: what a run left on the disk, to a real HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub_runs import TOKEN
from support.hub_server import LocalHub
from typer.testing import CliRunner

from drivetrain import Trainer
from drivetrain.checkpoint import validate
from drivetrain.cli.app import app
from drivetrain.cli.console import STATE
from drivetrain.hub import uploads

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra 'huggingface' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Make = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uploads, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.chdir(tmp_path)


def push(*words: str) -> Any:
    STATE.traceback = False
    return CliRunner().invoke(app, ["push", *words], catch_exceptions=False)


def test_what_the_end_of_a_run_says_is_done(
    hub: LocalHub,
    trainer: Make,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The commands that it names, to the letter, bring the hub to where it should be."""
    hub.tokens = {TOKEN}
    made = trainer(hub_strategy="checkpoint", hub_always_push=True, hub_model_id="us/named", seed=7)
    hub.fail("commit", 500)
    made.train()
    assert hub.commits == []
    (told,) = [record.getMessage() for record in caplog.records if "Send it by" in record.getMessage()]
    commands = told.partition("Send it by: ")[2].split("; ")
    assert commands == ["drivetrain push a-model --checkpoint 4 --with-state", "drivetrain push a-model"]
    hub.heal()
    refused = push("a-model")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: a-model is not pushed: the hub refused to make the repository")
    assert "(401)" in refused.stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for command in commands:
        done = push(*command.split()[2:])
        assert done.exit_code == 0, done.stderr
        assert "us/named  (huggingface)" in done.stdout
        assert f"{hub.address}/us/named/commit/" in done.stdout
    files = hub.repositories["us/named"]
    assert files["model.safetensors"] == Path("a-model/checkpoint-4/model.safetensors").read_bytes()
    there = tmp_path / "there"
    there.mkdir()
    for name, content in files.items():
        if name.startswith("last-checkpoint/"):
            (there / name.partition("/")[2]).write_bytes(content)
    assert validate(str(there)) is None
    assert b"| seed | 7 |" in files["README.md"]
    assert all(TOKEN.encode() not in content for content in files.values())


def test_what_can_be_chosen(hub: LocalHub, trainer: Make) -> None:
    """A run that knew nothing of a hub."""
    made = trainer(
        push_to_hub=False,
        hub_token=None,
        hub_patience=600.0,
        evaluation_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        learning_rate=0.5,
    )
    made.train()
    best = Path(made.state.best_model_checkpoint or "")

    def model_of(repository: str) -> bytes:
        return hub.repositories[repository]["model.safetensors"]

    def weights(name: str) -> bytes:
        return (Path("a-model") / name / "model.safetensors").read_bytes()

    done = push("a-model", "--private")
    assert done.exit_code == 0
    assert "the model of checkpoint-4  3 files, " in done.stdout
    assert hub.private == {"somebody/a-model": True}
    assert model_of("somebody/a-model") == weights("checkpoint-4")
    card = huggingface_hub.ModelCard(hub.repositories["somebody/a-model"]["README.md"].decode())
    assert card.data.library_name == "drivetrain"
    assert "| learning_rate | 0.5 |" in card.text
    assert "| optimizer | adamw_torch |" in card.text
    assert "4 updates, 2.00 epochs." in card.text
    assert card.text.count("| eval_loss |") == 1

    assert push("a-model/", "--checkpoint", "best", "--to", "us/best", "--message", "the best").exit_code == 0
    assert model_of("us/best") == weights(best.name)
    assert hub.messages[-1] == "the best"
    assert push("a-model", "--checkpoint", "2", "--to", "us/two").exit_code == 0
    assert model_of("us/two") == weights("checkpoint-2")
    assert push("a-model/checkpoint-3", "--to", "us/three", "--with-state").exit_code == 0
    assert model_of("us/three") == weights("checkpoint-3")
    assert "last-checkpoint/manifest.json" in hub.repositories["us/three"]
    made.save_model()
    done = push("a-model", "--to", "us/final")
    assert "the final model  2 files, " in done.stdout
    assert model_of("us/final") == Path("a-model/model.safetensors").read_bytes()
    assert not [path.name for path in Path("a-model").iterdir() if path.name.startswith(".")]


def test_mistakes_are_a_sentence(hub: LocalHub, trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(*words: str) -> str:
        done = push(*words)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        return str(done.stderr)

    assert "There is no folder a-modle." in says("a-modle")
    Path("empty").mkdir()
    assert "empty has neither a final model nor a whole checkpoint" in says("empty")
    made = trainer(hub_strategy="end", max_steps=1)
    made.train()
    assert "There is no folder a-modle. Did you mean 'a-model'?" in says("a-modle")
    assert "a-model has no checkpoint-7. Did you mean 'checkpoint-1'? There are: checkpoint-1." in says(
        "a-model", "--checkpoint", "7"
    )
    assert "a-model knows no best checkpoint" in says("a-model", "--checkpoint", "best")
    assert "hub_model_id='ftp://x' is an address, which no installed hub takes" in says(
        "a-model", "--to", "ftp://x"
    )
    assert "the hub takes no repository 'a b'" in says("a-model", "--to", "a b")
    assert "(403)" in says("a-model", "--to", "stranger/model")
    with open("a-model/checkpoint-1/model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    assert (
        "a-model is not pushed: it is not sent, since its model.safetensors has changed since it was written."
        in (says("a-model", "--checkpoint", "1"))
    )
    assert hub.commits == []
    made.save_model()
    sent = len(hub.commits)
    assert "--with-state sends a checkpoint, and the final model is none" in says("a-model", "--with-state")
    hub.fail("commit", 500)
    assert says("a-model", "--message", "again", "--to", "us/other") == (
        "Error: a-model is not pushed: the hub is in trouble (500).\n"
    )
    assert len(hub.commits) == sent


@pytest.mark.parametrize("columns", [60, 110])
def test_it_looks_good_in_a_terminal(
    hub: LocalHub, trainer: Make, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    trainer(hub_strategy="end", max_steps=1).train()
    done = push("a-model")
    assert done.exit_code == 0
    assert "Sending the model of checkpoint-1: 3 files" in done.stdout
    assert "\x1b[" in done.stdout
