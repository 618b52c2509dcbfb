"""A compilation of DeepSpeed's operators that was killed, and whose lock makes every later run wait for ever."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from drivetrain_plugins.strategy.deepspeed.configuration import Configuration

_OFFLOADED = {"adam": "cpu_adam", "adamw": "cpu_adam", "adagrad": "cpu_adagrad", "lion": "cpu_lion"}
_FUSED = {"adam": "fused_adam", "adamw": "fused_adam", "lion": "fused_lion"}
STALE_AFTER = 1800.0
"""Seconds after which a lock cannot be that of a compilation under way: one takes two minutes, or ten."""


def operators(config: Configuration) -> list[str]:
    """Names of the operators that this configuration compiles at their first use."""
    kind = str(config.get("optimizer.type", "")).lower()
    if config.get("optimizer.params.torch_adam"):
        return []
    compiled = _OFFLOADED if config.offloads("optimizer") else _FUSED
    return [compiled[kind]] if kind in compiled else []


def stale(names: list[str], now: float | None = None) -> Iterator[str]:
    """One sentence for each lock that a killed compilation left."""
    for name in names:
        lock = cache() / name / "lock"
        try:
            age = (time.time() if now is None else now) - lock.stat().st_mtime
        except OSError:
            continue
        if age > STALE_AFTER:
            yield (
                f"deepspeed: a compilation of {name} that was killed left the lock {lock}, on which every run waits "
                f"for ever: remove the folder {lock.parent}."
            )


def cache() -> Path:
    """The folder in which torch keeps the extensions that it compiled."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    import torch
    from torch.utils.cpp_extension import get_default_build_root

    cuda = torch.version.cuda
    device = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return Path(get_default_build_root()) / f"{python}_{device}"
