"""`drivetrain checkpoints verify-resume`: the proof, for the user's own model, that a resume is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drivetrain.checkpoint.difference import Change, Difference, compare
from drivetrain.cli.checkpoints_shown import by_how_much, print_changes
from drivetrain.cli.console import complain_line, say
from drivetrain.cli.launch import python_options
from drivetrain.cli.report import duration
from drivetrain.cli.verify_resume_part import FACTS
from drivetrain.errors import ConfigurationError

_LINES = 30  # of what a run that failed wrote
# The order in which the first difference is looked for: what the others follow from comes first.
_ORDER = (
    "position",
    "log",
    "weights",
    "gradients",
    "optimizer",
    "scheduler",
    "random",
    "callbacks",
    "plugin states",
)


def verify_resume(words: Sequence[str], steps: int, nproc: str | None, keep: str | None) -> int:
    """Runs N updates in one go, then half of them and a resume, and compares what stands at the end.

    Args:
        words: CONFIG.toml, and what overrides it.
        steps: updates; the schedule of all three runs is that of so many.
        nproc: processes of each run.
        keep: a folder in which the runs stay; by default they are deleted.

    Returns:
        the exit code: 0 where all is the same bit for bit, 1 where not, 2 where a run failed.

    Raises:
        ConfigurationError: `steps` cannot be halved, or `keep` is there already.
    """
    if steps < 2 or steps % 2:
        raise ConfigurationError(f"--steps {steps} cannot be halved: give an even number, at least 2.")
    half = steps // 2
    with _folder(keep) as folder:
        whole, begun, resumed = (os.path.join(folder, name) for name in ("whole", "half", "resumed"))
        at_half, at_end = f"checkpoint-{half}", f"checkpoint-{steps}"
        for number, (title, place, stops, source) in enumerate(
            (
                (f"{steps} steps in one go", whole, [half, steps], None),
                (f"{half} step{'s' * (half > 1)}", begun, [half], None),
                (f"a resume from there to {steps}", resumed, [steps], os.path.join(begun, at_half)),
            ),
            1,
        ):
            started = time.perf_counter()
            if not _run(words, place, stops, steps, source, nproc, title):
                return 2
            say(f"{number} of 3  {title}  ({duration(time.perf_counter() - started)})", style="dim")
        found = compare(os.path.join(whole, at_end), os.path.join(resumed, at_end))
        before = compare(os.path.join(whole, at_half), os.path.join(begun, at_half))
        facts = json.loads(Path(resumed, FACTS).read_text(encoding="utf-8"))
    _say_verdict(found, before, facts, half, steps)
    return 0 if found.equal else 1


@contextmanager
def _folder(keep: str | None) -> Iterator[str]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
            yield folder
        return
    if os.path.exists(keep) and (not os.path.isdir(keep) or os.listdir(keep)):
        raise ConfigurationError(f"--keep {keep} is there already: name a new folder.")
    os.makedirs(keep, exist_ok=True)
    yield os.path.abspath(keep)


def _run(
    words: Sequence[str],
    place: str,
    stops: Sequence[int],
    steps: int,
    source: str | None,
    nproc: str | None,
    title: str,
) -> bool:
    """One run, in a process of its own. What it wrote is shown where it fails."""
    os.makedirs(place)
    command = [sys.executable, *python_options(), "-m", "drivetrain", "checkpoints", "verify-resume-part"]
    command += [place, ",".join(map(str, stops)), *(["--nproc", nproc] if nproc is not None else []), *words]
    command += ["--output-dir", os.path.join(place, "run"), "--max-steps", str(steps)]
    command += ["--report-to", "none", "--no-push-to-hub", "--disable-tqdm"]
    command += ["--resume-from-checkpoint", source or "false"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode == 0 and os.path.isdir(os.path.join(place, f"checkpoint-{stops[-1]}")):
        return True
    lines = done.stdout.splitlines()
    print(*lines[-_LINES:], sep="\n", file=sys.stderr)
    complain_line(f"Nothing is proved: the run of {title} failed (exit code {done.returncode}).")
    return False


def _say_verdict(found: Difference, before: Difference, facts: dict[str, Any], half: int, steps: int) -> None:
    say()
    if found.equal:
        counts = [
            f"{count} tensors of the {part}" for part, count in found.tensors.items() if part in _ORDER[2:6]
        ]
        say(
            f"Exact: {steps} steps in one go, and {half} and a resume, end the same bit for bit: {', '.join(counts)}, "
            "the random states, every row of the log, the position in the data, and all other states.",
            style="green",
        )
        return
    say(f"Not exact: the resumed run ends otherwise than the one in one go. {_first(found)}", style="red")
    for sentence in _causes(found, before, facts, half):
        say(sentence)
    say()
    print_changes(found)


def _first(found: Difference) -> str:
    parts = [*_ORDER, *(change.part for change in found.changes)]
    change = next(found.of_part(part)[0] for part in parts if found.of_part(part))
    if change.part == "log":
        rest = next((c for part in ("weights", "optimizer") for c in found.of_part(part)), None)
        also = f" The first tensor that differs is {_named(rest)}." if rest is not None else ""
        return f"The log differs first in its {change.name}: {change.a!r} and {change.b!r}.{also}"
    return f"The first that differs is {_named(change)}."


def _named(change: Change) -> str:
    if change.differ is not None:
        return f"{change.part} {change.name} ({by_how_much(change)})"
    shown = "" if change.a is None and change.b is None else f": {change.a!r} and {change.b!r}"
    return f"{change.part} {change.name}{shown}"


def _causes(found: Difference, before: Difference, facts: dict[str, Any], half: int) -> Iterator[str]:
    """What the cause may be, by what differs and what was seen."""
    if not before.equal:
        yield (
            f"Two runs from the beginning differ already at step {half}, so it is not the resume: something is another "
            "at each start."
        )
        if facts["device"] != "cpu" and not facts["deterministic"]:
            yield f"On {facts['device']} some kernels are not deterministic: try --full-determinism."
        else:
            yield "Look for random numbers that no seed sets, for clocks, and for sets and files in no fixed order."
        return
    if facts["hidden"]:
        yield f"These change while training and are in no checkpoint: {', '.join(facts['hidden'])}."
        yield (
            "Keep them by save_state and load_state of a callback, a buffer or get_extra_state of a module, or "
            "state_dict of a data set."
        )
    for change in found.of_part("random"):
        yield f"The random state ({change.name}) is another at the end: not as many numbers were drawn from it."
    if facts["workers"]:
        yield (
            f"dataloader_num_workers is {facts['workers']}: if --dataloader-num-workers 0 is exact, the cause is in "
            "what the workers keep or draw."
        )
    if facts["device"] != "cpu" and not facts["deterministic"]:
        yield f"On {facts['device']} some kernels are not deterministic: try --full-determinism."
