"""What `drivetrain checkpoints list`, `verify` and `diff` print."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from drivetrain.checkpoint import files
from drivetrain.checkpoint.difference import Change, Difference, compare
from drivetrain.checkpoint.files import size
from drivetrain.checkpoint.listing import (
    TRANSFORMERS,
    Listed,
    Listing,
    bytes_of,
    list_checkpoints,
    what_is_wrong,
    writer_of,
)
from drivetrain.checkpoint.manifest import MANIFEST
from drivetrain.checkpoint.plain import plain
from drivetrain.checkpoint.rotation import checkpoints
from drivetrain.cli.console import console, is_terminal, say, table, width
from drivetrain.cli.report import figure
from drivetrain.errors import CheckpointError, did_you_mean

_LARGE = 200_000_000  # bytes from which progress is shown
_SHOWN = 12  # changes of a part that are shown
_NARROW = 100  # columns below which a table has fewer


# -- list ----------------------------------------------------------------------------------------------


def show_list(folder: str, verify: bool, as_json: bool) -> None:
    """Prints the checkpoints of a run.

    Raises:
        CheckpointError: there are none; the sentence says what is there instead.
    """
    check_run(folder)
    total = sum(bytes_of(path) for _, path in checkpoints(folder)) if verify else 0
    with _progress(total) as progress:
        listing = list_checkpoints(folder, verify=verify, progress=progress)
    if as_json:
        print(json.dumps(_listing_json(listing), indent=2))
        return
    _list_table(listing)
    if not is_terminal():
        return
    resumed = listing.resumes
    if resumed is not None:
        say(f"resume_from_checkpoint=True goes on from {os.path.basename(resumed.path)}.", style="dim")
    elif listing.checkpoints:
        say("resume_from_checkpoint=True finds nothing to go on from.", style="yellow")


def check_run(folder: str) -> None:
    """Raises CheckpointError where a folder has no checkpoints to list."""
    check_there(folder)
    if checkpoints(folder):
        return
    run = os.path.dirname(os.path.abspath(folder))
    if os.path.lexists(os.path.join(folder, MANIFEST)):
        raise CheckpointError(
            f"{folder} is itself a checkpoint: `drivetrain checkpoints list {_short(run)}` lists those of its run."
        )
    if files.hidden(folder):
        return
    inside = [name for name in sorted(os.listdir(folder)) if checkpoints(os.path.join(folder, name))]
    if inside:
        shown = ", ".join(os.path.normpath(os.path.join(folder, name)) for name in inside[:5])
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        raise CheckpointError(f"{folder} holds no checkpoints, but folders in it do: {shown}{more}.")
    raise CheckpointError(
        f"{folder} holds no checkpoints: they are folders named checkpoint-STEP, which a run writes into its "
        "output_dir as save_strategy says."
    )


def check_there(path: str) -> None:
    """Raises CheckpointError where a path is no folder."""
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise CheckpointError(f"{path} is a file, and a checkpoint is a folder.")
    parent = os.path.dirname(path) or "."
    beside = [os.path.join(os.path.dirname(path), name) for name in _names(parent)]
    raise CheckpointError(f"There is no folder {path}.{did_you_mean(path, beside)}")


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _list_table(listing: Listing) -> None:
    metrics = {entry.metric_name for entry in listing.checkpoints if entry.metric_name}
    name = metrics.pop() if len(metrics) == 1 else None
    wide = width() >= _NARROW
    rows: list[tuple[str, ...]] = []
    for entry in listing.checkpoints:
        step, state = str(entry.step), _state(entry)
        if wide:
            rows.append(
                (step, _epoch(entry), size(entry.size), _when(entry), _metric(entry, name), _by(entry), state)
            )
        else:
            rest = ", ".join(part for part in (_epoch(entry, "epoch "), _when(entry), _by(entry)) if part)
            rows.append((step, size(entry.size), _metric(entry, name), f"{state}\n{rest}"))
    for left in listing.leftovers:
        state = f"{os.path.basename(left.path)}: {left.what}"
        rows.append(
            ("-", "", size(left.size), "", "", "", state) if wide else ("-", size(left.size), "", state)
        )
    if wide:
        columns = ("step", "epoch", "size", "written", name or "metric", "run under", "state")
        table(columns, rows, styles=("cyan", None, None, "dim"), fixed=(0, 1, 2, 3, 4, 5))
    else:
        table(("step", "size", name or "metric", "state"), rows, styles=("cyan",), fixed=(0, 1, 2))


def _state(entry: Listed) -> str:
    if entry.problem is not None:
        words = [f"not valid: {_without(entry.path, entry.problem)}"]
    else:
        words = ["valid"]
    words += ["best"] * entry.best + ["next to resume"] * entry.resumes
    words += ["under a hidden name, from which the next run puts it back"] * entry.aside
    words += ["written by transformers"] * (entry.writer == TRANSFORMERS)
    return ", ".join(words)


def _without(path: str, problem: str) -> str:
    """A reason that names a file of the checkpoint, without the folder, which the row names."""
    return problem.replace(path + os.sep, "").replace(path, "it")


def _epoch(entry: Listed, prefix: str = "") -> str:
    return f"{prefix}{entry.epoch:.2f}" if entry.epoch is not None else ""


def _metric(entry: Listed, name: str | None) -> str:
    if entry.metric is None:
        return ""
    value = figure(entry.metric)
    return value if name is not None else f"{entry.metric_name} {value}"


def _by(entry: Listed) -> str:
    if entry.strategy is None:
        return ""
    return f"{entry.strategy} x {entry.world_size}" if (entry.world_size or 1) > 1 else entry.strategy


def _when(entry: Listed) -> str:
    """How long ago on a terminal, the time in a pipe."""
    if not is_terminal():
        return datetime.fromtimestamp(entry.written).isoformat(" ", "seconds")
    seconds = max(time.time() - entry.written, 0)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit != "days" and seconds >= length):
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _listing_json(listing: Listing) -> dict[str, Any]:
    resumed = listing.resumes
    return {
        "folder": listing.folder,
        "resumes": resumed.path if resumed is not None else None,
        "checkpoints": [
            {**dataclasses.asdict(entry), "valid": entry.problem is None} for entry in listing.checkpoints
        ],
        "leftovers": [dataclasses.asdict(left) for left in listing.leftovers],
    }


# -- verify --------------------------------------------------------------------------------------------


def show_verification(paths: Sequence[str], as_json: bool) -> int:
    """Prints for each checkpoint whether it is whole.

    Returns:
        the exit code: 1 where one is not.

    Raises:
        CheckpointError: a path is no folder, or a folder without checkpoints.
    """
    found: list[str] = []
    for path in paths:
        check_there(path)
        inside = [] if os.path.lexists(os.path.join(path, MANIFEST)) else checkpoints(path)
        found += [folder for _, folder in inside] or [path]
    total = sum(bytes_of(path) for path in found)
    wrong: dict[str, str | None] = {}
    with _progress(total) as progress:
        for path in found:
            wrong[path] = what_is_wrong(path, progress)
    if as_json:
        print(
            json.dumps(
                [{"path": path, "valid": not why, "problem": why} for path, why in wrong.items()], indent=2
            )
        )
    else:
        rows = [(path, f"not valid: {_without(path, why)}" if why else _whole(path))
                for path, why in wrong.items()]  # fmt: skip
        table(("checkpoint", "state"), rows, styles=("cyan",), header=False)
    return 1 if any(wrong.values()) else 0


def _whole(path: str) -> str:
    told = f"valid, {size(bytes_of(path))}"
    if writer_of(path) != TRANSFORMERS:
        return told
    return f"{told}, written by transformers, without checksums: whether a bit has turned cannot be told"


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object] | None]:
    """A bar on standard error while many bytes are read, where that is a terminal."""
    if total < _LARGE or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(
        "reading", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console(True), transient=True
    ) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda count: bar.advance(task, count)


# -- diff ----------------------------------------------------------------------------------------------


def show_difference(a: str, b: str, as_json: bool) -> int:
    """Prints in what two checkpoints differ.

    Returns:
        the exit code: 1 where they do.

    Raises:
        CheckpointError: one of them is no checkpoint and holds no weights.
    """
    for path in (a, b):
        _check_one(path)
    found = compare(a, b)
    if as_json:
        print(json.dumps(_difference_json(a, b, found), indent=2))
    else:
        say(f"A  {a}")
        say(f"B  {b}")
        if found.weights_alone:
            say("Only the weights are compared: not both are checkpoints of drivetrain.", style="yellow")
        print_changes(found)
        if found.equal:
            tensors = sum(found.tensors.values())
            say(f"Equal, bit for bit: {tensors} tensors{'' if found.weights_alone else ' and all else'}.")
    return 0 if found.equal else 1


def _check_one(path: str) -> None:
    """Raises CheckpointError where a path is no folder, or one of checkpoints."""
    check_there(path)
    inside = checkpoints(path)
    if inside and not os.path.lexists(os.path.join(path, MANIFEST)):
        raise CheckpointError(f"{path} is a folder of checkpoints: name one, such as {inside[-1][1]}.")


def print_changes(found: Difference) -> None:
    """A table for each part in which something differs."""
    for part in dict.fromkeys(change.part for change in found.changes):
        changes = found.of_part(part)
        title = part
        if any(change.differ for change in changes):
            title += f": {_of_tensors(changes, found.tensors[part])}"
        rows = [(change.name, _what(change)) for change in changes[:_SHOWN]]
        if len(changes) > _SHOWN:
            rows.append(("...", f"and {len(changes) - _SHOWN} more (--json shows all)"))
        if is_terminal():
            table(("", ""), rows, title=title, styles=("cyan",), header=False)
        else:
            for name, text in rows:
                print(f"{part}: {name}: {text}")


def _of_tensors(changes: Sequence[Change], count: int) -> str:
    moved = [change for change in changes if change.differ]
    furthest = max(moved, key=lambda change: change.max_abs or 0.0)
    return f"{len(moved)} of {count} tensors differ, by at most {furthest.max_abs:.3g} ({furthest.name})"


def _what(change: Change) -> str:
    if change.kind in ("only in A", "only in B"):
        value = change.a if change.kind == "only in A" else change.b
        return f"{change.kind}: {_value(value)}"
    if change.kind == "value" and change.a is None and change.b is None:
        return "differs"
    text = "" if change.kind == "tensor" else f"{_value(change.a)} and {_value(change.b)}"
    if change.differ is not None:
        text += "; " * bool(text) + by_how_much(change)
    return text


def by_how_much(change: Change) -> str:
    """How many elements of a tensor differ, and by how much."""
    if not change.differ:
        return "no value differs"
    count = f"{change.differ:,} of {change.of:,} differ"
    return f"{count}, by at most {change.max_abs:.3g} (relative {change.max_rel or 0:.2g})"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _difference_json(a: str, b: str, found: Difference) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "equal": found.equal,
        "weights_alone": found.weights_alone,
        "tensors": found.tensors,
        "changes": [plain(change) for change in found.changes],
    }


def _short(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


# -- export --------------------------------------------------------------------------------------------


def show_export(checkpoint: str, target: str, **options: Any) -> None:
    """Writes the weights of a checkpoint elsewhere, and says what was written.

    Raises:
        DrivetrainError: it cannot be done.
    """
    from drivetrain.checkpoint.export import export

    _check_one(checkpoint)
    made = export(checkpoint, target, **options)
    say(f"{made.path}: {made.tensors} tensors, {size(made.size)}, {made.form}")
