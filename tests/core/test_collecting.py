"""`average`, `broadcast`, `collect` and `gather`, in two processes."""

from __future__ import annotations

from pathlib import Path

from support.launch import torchrun


def test_tensors_of_two_ranks() -> None:
    torchrun(Path(__file__).with_name("collecting_script.py"))
