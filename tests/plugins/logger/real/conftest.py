"""Every tracker in a folder of its own, without the account and the variables of whoever runs the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain_plugins.logger import base

_THEIRS = (
    "MLFLOW_",
    "COMET_",
    "CLEARML_",
    "TRAINS_",
    "TRACKIO_",
    "SWANLAB_",
    "NEPTUNE_",
    "HF_MLFLOW",
    "HF_DAGSHUB",
)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(_THEIRS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    base._past.clear()
    yield
    base._past.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The warnings of these libraries, and what they leave to the garbage collector, are not ours to mend."""
    for item in items:
        if "logger/real" in str(item.path):
            item.add_marker(pytest.mark.filterwarnings("default"))
