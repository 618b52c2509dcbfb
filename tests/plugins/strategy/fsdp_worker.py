"""Runs many FSDP scenarios in one launch. Called with a folder that holds `scenarios.json`: {name: settings}."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from plugins.strategy.fsdp_model import build, outcome, plainness
from support.toy import rows

from drivetrain.errors import DrivetrainError
from drivetrain.processes import current


def scenario(folder: Path, name: str, settings: dict[str, Any], processes: int) -> dict[str, Any]:
    """One run: what it came to, and what was left of it on the bare model."""
    settings = dict(settings)
    resume, twice = settings.pop("resume", None), settings.pop("twice", False)
    only_evaluate = settings.pop("only_evaluate", False)
    try:
        made, seen = build(folder / name, processes, **settings)
        bare = made.model
        before, objects = plainness(bare), [id(p) for p in bare.parameters()]
        try:
            if only_evaluate:
                result: dict[str, Any] = {
                    "evaluated": made.evaluate()["eval_loss"],
                    "predictions": torch.as_tensor(made.predict(rows(11, seed=3)).predictions),
                }
            else:
                result = outcome(made, seen, made.train(resume_from_checkpoint=resume).training_loss)
                if twice:
                    result = outcome(made, seen, made.train().training_loss)
        except RuntimeError as error:
            if settings.get("fail_at") is None:
                raise
            seen.fail_at = None
            # Nothing hangs, and the model can be trained once more.
            result = {"failed": str(error), "after": made.train().training_loss}
    except DrivetrainError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    result["plain"] = plainness(bare) == before
    result["same_objects"] = [id(p) for p in bare.parameters()] == objects
    batch = torch.stack([row["x"] for row in rows(4)])
    labels = torch.tensor([row["labels"] for row in rows(4)])
    bare.train()
    bare(batch, labels)["loss"].backward()
    result["bare_gradients"] = sum(p.grad is not None for p in bare.parameters())
    result["trained"] = sum(p.requires_grad for p in bare.parameters())
    return result


def main(folder: Path) -> None:
    from drivetrain import TrainingArguments

    processes = current(TrainingArguments(str(folder), use_cpu=True, report_to="none"))
    for name, settings in json.loads((folder / "scenarios.json").read_text()).items():
        started = time.perf_counter()
        result = scenario(folder, name, settings, processes.world_size)
        everyone: list[Any] = [None] * processes.world_size
        dist.all_gather_object(everyone, result)
        if processes.rank == 0:
            result["ranks"] = [
                {key: other.get(key) for key in ("error", "seen", "plain", "same_objects", "loss")}
                for other in everyone
            ]
            result["seconds"] = time.perf_counter() - started
            torch.save(result, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
