"""One process of bench/evaluation.py: ENGINE ROWS BATCH OUT. Ends with 2 where the engine is not installed."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

COLUMNS = 100


class Net(torch.nn.Module):
    """A row of numbers from one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, COLUMNS)

    def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        logits = self.layer(x)
        return {"loss": logits.mean(), "logits": logits}


class Rows(torch.utils.data.Dataset[Any]):
    """Rows that are made when they are asked for, a whole batch at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Any:
        numbers = torch.tensor(indices)
        return {"x": numbers[:, None].float(), "labels": numbers}


class Mean:
    """A metric of all rows, fed batch by batch."""

    def __init__(self) -> None:
        self.total = self.rows = 0.0

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        self.total += float(prediction.predictions.sum())
        self.rows += len(prediction.label_ids)
        return {"mean": self.total / self.rows} if compute_result else {}


def resident(name: str) -> int:
    """Bytes, by the system's own count: VmRSS now, or VmHWM, the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    engine, rows, batch, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    values: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": batch}
    metrics = None
    if engine == "transformers":
        try:
            from transformers import Trainer, TrainingArguments
        except ImportError:
            return 2
        values["remove_unused_columns"] = False
    else:
        from drivetrain import Trainer, TrainingArguments  # type: ignore[assignment]

        values["use_cpu"] = True
        if engine == "drivetrain-fed":
            metrics = Mean()
            values["batch_eval_metrics"] = True
    arguments = TrainingArguments(str(out.with_suffix("")), **values)
    trainer = Trainer(Net(), arguments, data_collator=lambda given: given, compute_metrics=metrics)  # type: ignore[arg-type]

    def run(count: int) -> Any:
        data = Rows(count)
        return trainer.evaluate(data) if engine == "drivetrain-fed" else trainer.predict(data)  # type: ignore[arg-type]

    run(10 * batch)  # what is made at the first use is made
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before, began, work = resident("VmRSS"), time.perf_counter(), time.process_time()
    output = run(rows)
    seconds, work = time.perf_counter() - began, time.process_time() - work
    peak = resident("VmHWM") - before
    kept = 0
    if engine != "drivetrain-fed":
        assert output.predictions.shape == (rows, COLUMNS)
        assert output.label_ids.tolist()[-1] == rows - 1
        kept = output.predictions.nbytes + output.label_ids.nbytes
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, peak)
        peak = max(everyone)
    if int(os.environ.get("RANK", "0")) == 0:
        figures = {
            "seconds": seconds,
            "us a row": work / rows * 1e6,
            "kept MB": kept / 1e6,
            "peak MB": peak / 1e6,
            "times kept": peak / kept if kept else None,
        }
        out.write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
