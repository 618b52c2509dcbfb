"""A hub on loopback for each test, and a small run that pushes to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_runs import make, result
from support.hub_server import LocalHub, serving

from drivetrain import Trainer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="the extra 'huggingface' is not installed"
    )
    from huggingface_hub import utils

    # The faster protocol for large files needs a service of its own; HF_HUB_DISABLE_XET is read at the import.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server
        server.heal()
        end = time.monotonic() + 60
        while any(thread.name == "drivetrain-hub" for thread in threading.enumerate()):
            assert time.monotonic() < end, "an upload is still under way"
            time.sleep(0.01)
    if hasattr(utils, "close_session"):
        utils.close_session()


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def made(**arguments: Any) -> Trainer:
        return make(tmp_path, **arguments)

    return made


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """A run without a hub."""
    folder = tmp_path_factory.mktemp("alone")
    made = make(folder, push_to_hub=False, hub_token=None, hub_patience=600.0, save_strategy="no")
    made.train()
    return result(made)
