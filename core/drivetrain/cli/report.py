"""What a run shows before it begins and after it has ended."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drivetrain.cli.config import Config
from drivetrain.cli.console import is_terminal, say, table

# Metrics of speed say little beside the time that the summary names.
_SPEED = ("_runtime", "_samples_per_second", "_steps_per_second")


def sections(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A title, and names with what belongs to them; a name that repeats stands once."""
    say()
    say(title, style="bold")
    names = ["", *(name for name, _ in rows)]
    shown = [
        ("" if name == before and is_terminal() else name, text)
        for before, (name, text) in zip(names, rows, strict=False)
    ]
    table(("", ""), shown, styles=("cyan",), fixed=(0,), header=False)


def plan_rows(config: Config, trainer: Any, plan: Any, test: Any) -> list[tuple[str, str]]:
    """The plan of a run: model, data, length, device, plugins and why, and what has no effect."""
    args = trainer.args
    rows = [
        ("model", f"{type(trainer.model).__name__}, {_parameters(trainer.model)}"),
        ("data", _data(trainer, test)),
    ]
    if trainer.train_dataset is not None:
        rows.append(("training", _training(args, trainer.train_dataset)))
    rows.append(("device", _device(args)))
    rows += [(found.kind, _plugin(found)) for found in plan.active]
    rows += [("note", sentence) for sentence in plan.inert]
    rows.append(("output", str(args.output_dir)))
    return rows


def _plugin(found: Any) -> str:
    return f"{found.name}  ({found.reason})" if found.reason else str(found.name)


def _parameters(model: Any) -> str:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total = sum(count for count, _ in counts)
    trained = sum(count for count, grad in counts if grad)
    frozen = f", {trained:,} of them trained" if trained != total else ""
    return f"{total:,} parameters{frozen}"


def _rows(dataset: Any) -> str:
    try:
        return f"{len(dataset):,}"
    except TypeError:
        return "a stream"


def _data(trainer: Any, test: Any) -> str:
    parts: list[str] = []
    if trainer.train_dataset is not None:
        parts.append(f"train {_rows(trainer.train_dataset)}")
    if isinstance(trainer.eval_dataset, Mapping):
        parts += [f"eval {name} {_rows(rows)}" for name, rows in trainer.eval_dataset.items()]
    elif trainer.eval_dataset is not None:
        parts.append(f"eval {_rows(trainer.eval_dataset)}")
    if test is not None:
        parts.append(f"test {_rows(test)}")
    return ", ".join(parts) + " rows" if parts else "none"


def _training(args: Any, dataset: Any) -> str:
    length = f"{args.max_steps:,} updates" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    factors = [f"{args.train_batch_size} a device"]
    if args.gradient_accumulation_steps > 1:
        factors.append(f"{args.gradient_accumulation_steps} accumulated")
    if args.world_size > 1:
        factors.append(f"{args.world_size} processes")
    made_of = f" ({' x '.join(factors)})" if len(factors) > 1 else ""
    return f"{length}, {rows:,} rows an update{made_of}"


def _device(args: Any) -> str:
    import torch

    device = args.device
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'s' if threads != 1 else ''}"
    return str(device)


def metric_rows(metrics: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Results for people, each with its metrics in one line; figures of speed are left out."""
    rows = []
    for name, values in metrics:
        kept = [
            f"{_plain_key(key, name)} {figure(value)}"
            for key, value in values.items()
            if not key.endswith(_SPEED) and key not in ("epoch", "total_flos")
        ]
        rows.append((name, ", ".join(kept) or "done"))
    return rows


def _plain_key(key: str, split: str) -> str:
    return key.removeprefix(f"{split}_")


def figure(value: Any) -> str:
    """A number for people: four decimals, or three digits where it is small."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3g}"
    return str(value)


def duration(seconds: float) -> str:
    """`"8.3 s"`, `"4 min 12 s"`, `"3 h 05 min"`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def speed(metrics: Mapping[str, Any], split: str) -> str | None:
    """Time and throughput of a part of the run."""
    seconds = metrics.get(f"{split}_runtime")
    if seconds is None:
        return None
    rate = metrics.get(f"{split}_samples_per_second")
    return duration(float(seconds)) + (f", {float(rate):,.0f} rows/s" if rate else "")


def short(path: str | Path) -> str:
    """A path as a user in this folder would write it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def is_quiet_process() -> bool:
    """Whether this process is one of several and not the first, so that it prints nothing."""
    return os.environ.get("RANK", "0") != "0"
