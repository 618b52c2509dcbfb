"""Several processes: one of them pushes, and the others wait with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.hub_server import LocalHub
from support.launch import torchrun

pytest.importorskip("huggingface_hub", reason="the extra 'huggingface' is not installed")


def test_the_main_process_alone_pushes(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    # The end of the run has something to try again, and the others do not leave meanwhile.
    hub.fail("commit", 500, times=3)
    shown = torchrun(Path(__file__).with_name("ranks.py"), os.fspath(tmp_path))
    assert "RESULT [0, 4]" in shown or "RESULT [0, 2]" in shown
    assert "RESULT [1, " in shown
    assert sum(path == "/api/repos/create" for _, path, _, _ in hub.requests) == 1
    files = hub.repositories["somebody/a-model"]
    assert {"model.safetensors", "README.md", "last-checkpoint/manifest.json"} <= set(files)
    assert "Not at the hub" not in shown
    assert "SAID 1" not in shown
