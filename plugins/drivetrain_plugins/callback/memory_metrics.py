"""`skip_memory_metrics=False`: memory of the host and of the device, by stage, in the metrics."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_INTERVAL = 0.005  # seconds between two looks, where the system does not tell the peak


class HostMemory:
    """The resident memory of this process, and its peak since the last `begin`.

    Linux keeps the peak by itself, and forgets it on request. Where it may not be asked to, and elsewhere, a thread
    looks every few milliseconds.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._exact = False
        self._stop: threading.Event | None = None

    def begin(self) -> int:
        """Forgets the peak; gives the bytes in use."""
        self.end()
        try:
            _CLEAR.write_text("5", encoding="ascii")
            self._exact = True
        except OSError:
            self._exact = False
            self._peak, self._stop = resident(), threading.Event()
            threading.Thread(
                target=self._watch, args=(self._stop,), name="drivetrain-memory", daemon=True
            ).start()
        return resident()

    def end(self) -> int:
        """The peak in bytes."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None
        return _of_status("VmHWM") if self._exact else max(self._peak, resident())

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_INTERVAL):
            self._peak = max(self._peak, resident())


def resident() -> int:
    """Bytes of this process that are in memory.

    Raises:
        ImportError: neither Linux nor psutil is there to tell.
    """
    if _STATUS.exists():
        return _of_status("VmRSS")
    import psutil

    return int(psutil.Process().memory_info().rss)


def _of_status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass(slots=True)
class _Begun:
    """A stage under way, and what was in use when it began."""

    stage: str
    host: int
    device: int


class MemoryMetrics:
    """Adds `STAGE_mem_cpu_alloc_delta` and `STAGE_mem_cpu_peaked_delta` to a stage's metrics, and the same for `gpu`.

    Both in bytes: what the stage has left in use, and what it had used more than that at its peak. A stage within
    another is a part of it. What the making of the Trainer has used comes with the first stage after it, with what was
    in use before (`before_init_mem_cpu`). Each rank measures its own; the log is that of rank 0.
    """

    def __init__(self) -> None:
        self._host = HostMemory()
        self._begun: _Begun | None = None
        self._waiting: dict[str, int] = {}

    @hookimpl(tryfirst=True)
    def on_stage_begin(self, run: Run, stage: str) -> None:
        """Notes what is in use, unless another stage is under way."""
        if self._begun is not None and self._begun.stage != stage:
            return
        gc.collect()
        device = _device(run)
        if device is not None:
            device.reset_peak_memory_stats()
        self._begun = _Begun(
            stage, self._host.begin(), device.memory_allocated() if device is not None else 0
        )
        if stage == "init":
            self._waiting["before_init_mem_cpu"] = self._begun.host
            if device is not None:
                self._waiting["before_init_mem_gpu"] = self._begun.device

    @hookimpl(trylast=True)
    def on_stage_end(self, run: Run, stage: str, metrics: dict[str, float]) -> None:
        """Adds the figures of the stage."""
        begun = self._begun
        if begun is None or begun.stage != stage:
            return
        peak = self._host.end()
        gc.collect()
        now = resident()
        found = {
            f"{stage}_mem_cpu_alloc_delta": now - begun.host,
            f"{stage}_mem_cpu_peaked_delta": max(0, peak - now),
        }
        device = _device(run)
        if device is not None:
            now = device.memory_allocated()
            found[f"{stage}_mem_gpu_alloc_delta"] = now - begun.device
            found[f"{stage}_mem_gpu_peaked_delta"] = max(0, device.max_memory_allocated() - now)
        self._begun = None
        if stage == "init":
            self._waiting |= found
            return
        metrics.update(self._waiting)
        metrics.update(found)
        self._waiting = {}

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """The stage under way will have no end."""
        self._host.end()
        self._begun = None


def _device(run: Run) -> Any:
    """The module of torch that counts the device's memory; None on a host, and where torch does not count."""
    if run.device.type in ("cpu", "meta"):
        return None
    found = torch.get_device_module(run.device)
    return found if hasattr(found, "max_memory_allocated") else None
