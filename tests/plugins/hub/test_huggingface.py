"""The hub, met over HTTP by huggingface_hub itself."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from support.hub_runs import TOKEN, make
from torch import nn

from drivetrain import ConfigurationError, Trainer

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
constants = pytest.importorskip("huggingface_hub.constants")
needs_later_client = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("0.20"),
    reason="older clients read no HF_TOKEN, and ask the real hub about every card",
)

# The client's own, about the library under it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def trainer(folder: Path, model: nn.Module | None = None, **arguments: Any) -> Trainer:
    return make(
        folder,
        model,
        **{
            "hub_strategy": "end",
            "evaluation_strategy": "epoch",
            "save_strategy": "epoch",
            "num_train_epochs": 1,
            **arguments,
        },
    )


def test_the_model_and_its_card_go_up_at_the_end(tmp_path: Path, hub: Any) -> None:
    made = trainer(tmp_path)
    assert list(hub.repositories) == ["somebody/a-model"]  # known before the first step
    made.train()
    assert hub.messages == []
    made.save_model()
    files = hub.repositories["somebody/a-model"]
    assert hub.messages == ["Model save"]
    assert {"model.safetensors", "README.md"} <= set(files)
    assert not any(name.startswith(("checkpoint-", ".", "_")) for name in set(files) - {".gitattributes"})
    assert files["model.safetensors"] == (tmp_path / "a-model" / "model.safetensors").read_bytes()

    answer = made.push_to_hub("nothing new")
    # Of what is there already the client makes no commit; an older one makes an empty one.
    assert hub.messages.count("nothing new") <= (Version(huggingface_hub.__version__) < Version("0.27"))
    assert "somebody/a-model" in str(answer)
    answer = made.push_to_hub("a message", license="mit")
    assert hub.messages[-1] == "a message"
    assert "somebody/a-model" in str(answer)
    waiting = made.push_to_hub("another", blocking=False, license="apache-2.0")
    assert isinstance(waiting, Future)
    waiting.result(timeout=60)
    assert hub.messages[-1] == "another"


def test_the_token_is_sent_and_never_written(
    tmp_path: Path, hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    made = trainer(tmp_path)
    made.train()
    made.push_to_hub()
    sent = [(path, header) for _, path, header, _ in hub.requests if path.startswith("/api/models")]
    assert sent
    assert all(header == f"Bearer {TOKEN}" for _, header in sent)
    assert not any(TOKEN.encode() in body for _, _, _, body in hub.requests)
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(made.args)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    for name, content in hub.repositories["somebody/a-model"].items():
        assert TOKEN.encode() not in content, name


@needs_later_client
def test_the_token_of_the_environment(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    trainer(tmp_path, hub_token=None)
    assert hub.requests[0][2] == "Bearer hf_from_the_environment"


def test_owner_name_and_privacy(tmp_path: Path, hub: Any) -> None:
    trainer(tmp_path, hub_model_id="someone/other", hub_private_repo=True)
    trainer(tmp_path, hub_model_id="someone/other", hub_private_repo=True)  # it is there now
    assert hub.private == {"someone/other": True}
    trainer(tmp_path, hub_model_id="open")
    assert hub.private["somebody/open"] is False


@needs_later_client
def test_the_card(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)  # which validate() reads, and nothing else
    made = trainer(tmp_path, learning_rate=0.125)
    made.train()
    made.create_model_card(language="en", license="mit", tags="small", dataset="rows of ones", tasks="other")
    card = huggingface_hub.ModelCard.load(tmp_path / "a-model" / "README.md")
    card.validate()
    assert card.data.language == "en"
    assert card.data.license == "mit"
    assert card.data.tags == ["small", "generated_from_trainer"]
    assert card.data.pipeline_tag == "other"
    assert "# a-model" in card.text
    assert "A Net, trained from scratch, on rows of ones." in card.text
    assert "| learning_rate | 0.125 |" in card.text
    (row,) = [entry for entry in made.state.log_history if "eval_loss" in entry]
    assert (
        f"| {row['step']} | {row['epoch']} | {made.state.log_history[1]['loss']} | {row['eval_loss']:.4f} |"
        in card.text
    )


def test_a_card_of_the_users_stays(tmp_path: Path, hub: Any) -> None:
    made = trainer(tmp_path)
    (tmp_path / "a-model" / "README.md").write_text("mine")
    made.push_to_hub("as it is")
    assert hub.repositories["somebody/a-model"]["README.md"] == b"mine"
    made.push_to_hub("with words", license="mit")  # what is asked for is done
    assert b"license: mit" in hub.repositories["somebody/a-model"]["README.md"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_known_before_training(tmp_path: Path, hub: Any, status: int) -> None:
    hub.fail("create", status)
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path)
    assert f"the hub refused to make the repository 'a-model' ({status})" in str(caught.value)
    assert "hub_model_id" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_hub_that_does_not_answer_is_known_before_training(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.server_close()
    hub.shutdown()
    with pytest.raises(
        ConfigurationError, match=r"could not be asked for the repository 'a-model' \(.*network"
    ):
        trainer(tmp_path)


def test_without_push_to_hub_nothing_is_sent(tmp_path: Path, hub: Any) -> None:
    made = trainer(tmp_path, push_to_hub=False, hub_token=None)
    made.train()
    made.save_model()
    assert hub.requests == []
