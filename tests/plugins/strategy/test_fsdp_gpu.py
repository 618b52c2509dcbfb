"""What FSDP can only do with an accelerator: one process on one device is enough to see that the engine does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plugins.strategy.fsdp_model import build, outcome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    made, seen = build(folder, 1, use_cpu=False, **settings)
    return outcome(made, seen, made.train().training_loss)


@pytest.mark.parametrize("version", [1, 2])
def test_offloaded_weights_rest_on_the_host(version: int, tmp_path: Path) -> None:
    made, seen = build(
        tmp_path / "off", 1, use_cpu=False, fsdp="full_shard auto_wrap offload", fsdp_version=version
    )
    places: set[str] = set()

    def note(run: Any) -> None:
        places.update(
            p.device.type for group in run.optimizer.param_groups for p in group["params"] if p.dim()
        )

    seen.on_step_begin = lambda *a, **k: note(made.run)  # type: ignore[attr-defined]
    offloaded = outcome(made, seen, made.train().training_loss)
    assert places == {"cpu"}
    plain = run(tmp_path / "plain", fsdp="full_shard auto_wrap", fsdp_version=version)
    assert offloaded["loss"] == pytest.approx(plain["loss"], rel=1e-4)


@pytest.mark.parametrize("version", [1, 2])
def test_fp16_scales_the_loss(version: int, tmp_path: Path) -> None:
    half = run(tmp_path / "half", fsdp="full_shard auto_wrap", fsdp_version=version, fp16=True)
    full = run(tmp_path / "full", fsdp="full_shard auto_wrap", fsdp_version=version)
    assert half["loss"] == pytest.approx(full["loss"], rel=2e-2)
