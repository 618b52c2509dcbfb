"""NaN in two processes, of which one or both have it, under real engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.launch import torchrun

SCRIPT = Path(__file__).with_name("nan_ranks.py")


def test_all_ranks_come_to_the_same_end(tmp_path: Path) -> None:
    printed = torchrun(SCRIPT, str(tmp_path), "ddp", "fsdp", timeout=280)
    for engine in ("ddp", "fsdp"):
        for rank in (0, 1):
            assert f"rank {rank} is whole: {engine}" in printed


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["fsdp1", "oss", "sharded", "zero2", "zero3"])
def test_under_the_other_engines(tmp_path: Path, engine: str) -> None:
    assert f"rank 1 is whole: {engine}" in torchrun(SCRIPT, str(tmp_path), engine, timeout=1100)
