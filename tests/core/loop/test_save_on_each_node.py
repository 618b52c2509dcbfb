"""save_on_each_node on two nodes of two processes each, played on one machine; each node has a folder of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from support.by_hand import as_torchrun, free_port, run

SCRIPT = Path(__file__).with_name("each_node_ranks.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def on_two_nodes(folder: Path, engines: list[str]) -> None:
    port = free_port()
    environments = [
        as_torchrun(rank, 4, port)
        | {"LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": rank // 2, "GROUP_WORLD_SIZE": 2}
        for rank in range(4)
    ]
    ended = run([str(SCRIPT), str(folder), ";".join(engines)], environments, timeout=250)
    assert [process.code for process in ended] == [0] * 4, "\n".join(p.err[-4000:] for p in ended)
    for name in engines:
        assert all(f"{name}: fine" in process.out for process in ended)


def test_each_node_keeps_what_a_run_goes_on_from(tmp_path: Path) -> None:
    on_two_nodes(tmp_path, ["ddp", "fsdp"])


@pytest.mark.soak
def test_under_every_strategy(tmp_path: Path) -> None:
    engines = ["fsdp1"]
    engines += ["zero1", "zero3"] if find_spec("deepspeed") is not None else []
    engines += ["oss"] if find_spec("fairscale") is not None else []
    on_two_nodes(tmp_path, engines)
