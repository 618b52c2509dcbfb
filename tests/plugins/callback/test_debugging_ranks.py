"""Debugging in two processes under real engines: NaN on one of them or on both, and what each measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.launch import torchrun

SCRIPT = Path(__file__).with_name("debugging_ranks.py")


def test_all_ranks_come_to_the_same_end(tmp_path: Path) -> None:
    printed = torchrun(SCRIPT, str(tmp_path), "ddp", "fsdp", timeout=280)
    for engine in ("ddp", "fsdp"):
        for rank in (0, 1):
            assert f"rank {rank} is whole: {engine}" in printed
    assert printed.count("The dearest operators") == 1  # rank 0 speaks


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["fsdp1", "oss", "sharded", "zero2", "zero3"])
def test_under_the_other_engines(tmp_path: Path, engine: str) -> None:
    assert f"rank 1 is whole: {engine}" in torchrun(SCRIPT, str(tmp_path), engine, timeout=1100)
