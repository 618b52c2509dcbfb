"""auto_find_batch_size in several processes: one has a memory limit of the system's, and all agree on what fits it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from support.launch import torchrun

SCRIPT = Path(__file__).with_name("memory_ranks.py")


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to know how much is mapped")
def test_all_agree_on_what_fits_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # a thread's own arena maps 64 MB that it does not use
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))  # what is given back, the system has at once
    said = torchrun(SCRIPT, str(tmp_path), timeout=540)
    for scenario in ("training", "parts", "late", "one_row", "evaluation", "refused"):
        for rank in range(2):
            assert f"{scenario}: fine on rank {rank}" in said, said[-3000:]
    assert "Out of memory with 64 rows a device: starting again with 32." in said  # by the one
    assert (
        "Out of memory with 64 rows a device in another process: starting again with 32." in said
    )  # by the other


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_engines_begin_anew_in_one_process(tmp_path: Path) -> None:
    engines = ["fsdp", "fsdp1", *(["zero1", "zero3"] if find_spec("deepspeed") is not None else [])]
    script = SCRIPT.with_name("memory_engines.py")
    said = torchrun(script, str(tmp_path), ",".join(engines), processes=1, timeout=540)
    assert [name for name in engines if f"{name}: fine" not in said] == []
