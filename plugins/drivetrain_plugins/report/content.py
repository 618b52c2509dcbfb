"""What a page says of runs, as plain data: how each went, what is drawn, and in what they differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from drivetrain.record import Named, Recorded
from drivetrain.shares import BOTTLENECK, PARTS, percent, share_of_data
from drivetrain_plugins.report.series import Series, series_of
from drivetrain_plugins.report.thinning import finite

_QUIET = 600.0  # seconds without a row, after which a run that has no end is not called under way
_CHECKPOINTS = 200


def content(runs: Sequence[Named], live: bool = False) -> dict[str, Any]:
    """All that the page shows.

    Args:
        runs: in the order in which they are drawn.
        live: the page will ask for more.
    """
    return {
        "live": live,
        "made": time.time(),
        "runs": [_run(found) for found in runs],
        "configuration": _configuration([found.run for found in runs]),
    }


def _run(named: Named) -> dict[str, Any]:
    run, series = named.run, series_of(named.run)
    spent = parts_of(run)
    return {
        "name": named.name,
        "source": str(run.source),
        "status": _status(run),
        "summary": _summary(run, series, spent),
        "parts": spent,
        "plugins_spent": _plugins(run),
        "hint": _hint(run, spent),
        "ranks": [_waited(parts) for parts in (run.end or {}).get("ranks", [])],
        "series": {name: found.plain() for name, found in series.items()},
        "checkpoints": _checkpoints(run),
        "warnings": [_without_kind(row) for row in run.warnings],
        "notes": run.begin.get("notes", []),
        "predictions": [_figures(row["logs"]) for row in run.predictions],
        "plugins": run.begin.get("plugins", []),
        "versions": run.begin.get("versions", {}),
        "resumed": run.resumed,
        "lost": run.lost,
        "earlier": run.earlier,
        "has_record": bool(run.begin.get("arguments")),
    }


def _status(run: Recorded) -> dict[str, Any]:
    """In a word, how the run stands, and more where there is more to say."""
    if run.error is not None:
        told = run.error["error"]
        left = told.startswith(("Preempted", "KeyboardInterrupt"))
        return {"word": "told to leave" if left else "failed", "more": told}
    if run.end is not None:
        stopped = run.end.get("stopped")
        return {"word": "finished", "more": f"Stopped early: {stopped}" if stopped else ""}
    if run.last is None:
        return {"word": "as saved", "more": ""}
    if time.time() - run.last < _QUIET:
        return {"word": "running", "more": ""}
    return {
        "word": "not ended",
        "more": "Its record has no end: the run was killed, or has been silent since.",
    }


def _summary(run: Recorded, series: dict[str, Series], spent: dict[str, float]) -> dict[str, Any]:
    steps = max((row.get("step", 0) for row in run.logs), default=0)
    whole: dict[str, Any] = next(
        (row["logs"] for row in reversed(run.logs) if "train_runtime" in row["logs"]), {}
    )
    seconds = sum(spent.values()) or finite(whole.get("train_runtime"))
    if seconds is None and run.last is not None and run.began is not None:
        seconds = run.last - run.began
    rates = [value for value in _values(series, "figures/rows_per_second") if value is not None]
    speed = finite(whole.get("train_samples_per_second"))
    if run.resumed or speed is None:  # that of the log counts the rows of the whole run
        speed = sorted(rates)[len(rates) // 2] if rates else speed
    losses = [value for value in _values(series, "loss") if value is not None]
    model = run.begin.get("model", {})
    return {
        "step": steps,
        "max_steps": run.begin.get("max_steps"),
        "loss": losses[-1] if losses else None,
        "first_loss": losses[0] if losses else None,
        "best": _best(run, series),
        "seconds": seconds,
        "rows_per_second": speed,
        "epochs": run.begin.get("epochs"),
        "model": model.get("class"),
        "parameters": model.get("parameters"),
        "device": run.begin.get("device"),
        "processes": run.begin.get("processes"),
        "rows_per_update": run.begin.get("rows_per_update"),
        "memory": max((v for v in _values(series, "memory/device_peak") if v is not None), default=None)
        or max((v for v in _values(series, "memory/host") if v is not None), default=None),
        "trial": run.begin.get("trial"),
        "began": run.began,
        "last": run.last,
    }


def _values(series: dict[str, Series], name: str) -> list[float | None]:
    return series[name].values if name in series else []


def _best(run: Recorded, series: dict[str, Series]) -> dict[str, Any] | None:
    """The best of the metric that the run was told to watch; else the lowest loss of an evaluation."""
    told = run.end if run.end is not None and run.end.get("best") else (run.saves or [{}])[-1]
    metric = run.begin.get("metric")
    if told.get("best_metric") is not None:
        name = str(metric or "best metric").removeprefix("eval_")
        return {"name": name, "value": told["best_metric"], "where": told.get("best")}
    name = str(metric or "loss").removeprefix("eval_")
    greater = bool(run.begin.get("greater_is_better")) if metric else False
    found = series.get(f"eval/{name}")
    if found is None:
        return None
    points = [(v, step) for v, step in zip(found.values, found.steps, strict=True) if v is not None]
    if not points:
        return None
    value, step = (max if greater else min)(points, key=lambda point: point[0])
    return {"name": f"eval {name}", "value": value, "where": f"step {step}"}


def parts_of(run: Recorded) -> dict[str, float]:
    """Seconds by part, over all the parts of a run that was resumed."""
    found: dict[str, float] = {}
    for told in run.parts:
        for part, seconds in told.get("seconds", {}).items():
            found[part] = found.get(part, 0.0) + seconds
    order = {part: place for place, part in enumerate((*PARTS, "forward and backward"))}
    return {part: found[part] for part in sorted(found, key=lambda part: order.get(part, 99)) if found[part]}


def _plugins(run: Recorded) -> list[list[Any]]:
    found: dict[str, float] = {}
    for told in run.parts:
        for name, seconds in told.get("plugins", {}).items():
            found[name] = found.get(name, 0.0) + seconds
    return [[name, found[name]] for name in sorted(found, key=lambda name: -found[name])]


def _waited(parts: dict[str, float]) -> float:
    """The share of its time that a rank waited for data."""
    return parts.get("data", 0.0) / (sum(parts.values()) or 1.0)


def _hint(run: Recorded, spent: dict[str, float]) -> str | None:
    share = share_of_data(spent)
    if share < BOTTLENECK or spent.get("data", 0.0) < 1.0:
        return None
    said = f"Data loading is the bottleneck: updates waited for it {percent(share)} of their time."
    workers = run.begin.get("arguments", {}).get("dataloader_num_workers")
    return said + (f" dataloader_num_workers is {workers}." if workers is not None else "")


def _checkpoints(run: Recorded) -> list[dict[str, Any]]:
    told = run.end if run.end is not None and run.end.get("best") else (run.saves or [{}])[-1]
    found = [
        {"step": row["step"], "name": row["checkpoint"], "best": row["checkpoint"] == told.get("best")}
        for row in run.saves
        if row.get("checkpoint")
    ]
    return [row for row in found[:-_CHECKPOINTS] if row["best"]] + found[-_CHECKPOINTS:]


def _without_kind(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "kind"}


def _figures(logs: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, given in logs.items() if (value := finite(given)) is not None}


def _configuration(runs: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Rows of a table: what differs first, then what is set in any run, then nothing: defaults are left out."""
    told = [_facts(run) for run in runs]
    names = dict.fromkeys(name for facts, _ in told for name in facts)
    rows = []
    for name in names:
        values = [facts.get(name, "") for facts, _ in told]
        differs = len(set(values)) > 1
        if differs or any(name in given for _, given in told):
            rows.append({"name": name, "values": values, "differs": differs})
    return sorted(rows, key=lambda row: not row["differs"])


def _facts(run: Recorded) -> tuple[dict[str, str], set[str]]:
    """What a run was made of, as text, and the names of what was not left to its default."""
    begin = run.begin
    facts: dict[str, str] = {}
    if "model" in begin:
        facts["model"] = f"{begin['model']['class']}, {begin['model']['parameters']:,} parameters"
        facts["device"] = f"{begin['processes']} x {begin['device']}"
        facts["rows an update"] = str(begin["rows_per_update"])
    if begin.get("trial"):
        facts["trial"] = ", ".join(f"{name}={value}" for name, value in begin["trial"].items())
    facts["plugins"] = ", ".join(found[1] for found in begin.get("plugins", []))
    for name, version in begin.get("versions", {}).items():
        facts[f"version of {name}"] = version
    for name, value in begin.get("arguments", {}).items():
        if name not in ("output_dir", "logging_dir", "run_name"):
            facts[name] = "none" if value is None else str(value)
    return facts, set(begin.get("given", [])) - {"output_dir"}
