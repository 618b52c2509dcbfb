"""One process of `strategies.py`, started by torchrun: times drivers of one engine in turn, or weighs one of them.

Its only argument is a JSON object of `strategy`, `model`, `drivers`, `windows`, `rounds`, `seed`, `kind` ("time"
or "memory") and `out`; what it found is written to `OUT.RANK`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engines import quiet
from strategies_seen import Unable
from strategies_trainers import DRIVERS
from strategies_work import WORKS, Clock, Work, memory


def one(driver: str, strategy: str, work: Work, windows: int) -> tuple[Clock, dict[str, Any]]:
    """A run: its clock, and what ran."""
    torch.manual_seed(1)
    gc.collect()
    dist.barrier()
    clock = work.clock(windows)
    return clock, DRIVERS[driver](strategy, work, clock)


def why_not(driver: str, strategy: str, work: Work) -> tuple[str | None, dict[str, Any]]:
    """Runs it once: None, or in one line why it does not run here; and what ran."""
    reason, about = None, {}
    try:
        _, about = one(driver, strategy, work, 1)
    except Exception as problem:
        if not isinstance(problem, Unable):
            import traceback

            traceback.print_exc()
        name = "" if isinstance(problem, Unable) else f"{type(problem).__name__}: "
        reason = name + " ".join(str(problem).split())
    reasons: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    return next((found for found in reasons if found), None), about


def timed(spec: dict[str, Any], work: Work) -> dict[str, Any]:
    """(wall, processor) milliseconds a step, by driver, round and window; and why others did not run."""
    strategy, out = spec["strategy"], {"reasons": {}, "about": {}, "rounds": {}}
    for driver in spec["drivers"]:
        reason, about = why_not(driver, strategy, work)
        if reason is None:
            out["about"][driver], out["rounds"][driver] = about, []
        else:
            out["reasons"][driver] = reason
    order, shuffler = list(out["rounds"]), random.Random(spec["seed"])
    for _ in range(spec["rounds"]):
        shuffler.shuffle(order)
        for driver in order:
            clock, _ = one(driver, strategy, work, spec["windows"])
            out["rounds"][driver].append(clock.windows)
    return out


def weighed(spec: dict[str, Any], work: Work) -> dict[str, Any]:
    """Peak resident memory of one driver until its last step: in all, and above what was there before.

    The small model is trained first, so that imports and what is made once are not counted.
    """
    (driver,), strategy = spec["drivers"], spec["strategy"]
    small = dataclasses.replace(WORKS["small"], folder=work.folder, warm_up=2, window=2)
    reason, _ = why_not(driver, strategy, small)
    if reason is not None:
        return {"reason": reason}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    clock, about = one(driver, strategy, work, 1)
    return {"peak": clock.peak, "growth": clock.peak - before, "about": about}


def main(text: str) -> None:
    """The program."""
    spec = json.loads(text)
    warnings.simplefilter("ignore")
    quiet()
    torch.set_num_threads(1)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    dist.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        work = dataclasses.replace(WORKS[spec["model"]], folder=Path(folder), **spec.get("work", {}))
        out = timed(spec, work) if spec["kind"] == "time" else weighed(spec, work)
        dist.barrier()
    Path(f"{spec['out']}.{dist.get_rank()}").write_text(json.dumps(out))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
