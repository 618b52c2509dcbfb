"""Azure ML: outside of a job azureml-core prints what it would send. There is no Azure here."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.trackers import library, logged

library("azureml.core")


def test_rows_come_to_the_offline_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = logged(tmp_path, "azure_ml")
    made.train()
    printed = capfd.readouterr().out
    for row in made.state.log_history:
        for name in ("loss", "eval_loss", "train_loss"):
            if name in row:
                assert f"Attempted to log scalar metric {name}:\n{row[name]}" in printed
