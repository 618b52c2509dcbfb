"""`debug="tpu_metrics_debug"`: it needs torch_xla, and says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.toy import trainer

from drivetrain import ConfigurationError


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="torch_xla is installed")
def test_without_torch_xla(tmp_path: Path) -> None:
    said = r"Callback 'tpu_metrics' needs torch_xla>=2.9, which is not installed. Run: pip install 'drivetrain\[xla\]'"
    for values in ({"debug": "tpu_metrics_debug"}, {"debug": "underflow_overflow tpu_metrics_debug"}):
        with pytest.raises(ConfigurationError, match=said):
            trainer(tmp_path, **values)


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="needs torch_xla")
def test_the_counters_are_printed(tmp_path: Path, capsys: Any) -> None:
    made = trainer(
        tmp_path, debug="tpu_metrics_debug", max_steps=2, save_strategy="no", evaluation_strategy="epoch"
    )
    made.train()
    assert capsys.readouterr().out.count("Metric: ") >= 2
