"""Compare two folders written by run.py: ``python parity/compare.py REFERENCE OURS``. Exits 1 on any disagreement.

Numbers agree within 2e-5 relative (and 1e-6 absolute, for numbers that should be zero), bf16 included. One looser
place: a logged step loss is rounded to four places by both engines, so one unit of the last place may flip.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

RELATIVE, ABSOLUTE = 2e-5, 1e-6
ROUNDED_LOSS = 1.01e-4


def close(a: float, b: float, absolute: float = ABSOLUTE) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= absolute + RELATIVE * max(abs(a), abs(b))


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two JSON values differ, in words; empty when they agree."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}: only in the reference: {key}" for key in a.keys() - b.keys()]
        found += [f"{where}: only in ours: {key}" for key in b.keys() - a.keys()]
        for key in a.keys() & b.keys():
            if key == "loss" and "learning_rate" in a and _numbers(a[key], b[key]):
                if not close(a[key], b[key], ROUNDED_LOSS):
                    found.append(f"{where}.loss: {a[key]} | {b[key]}")
            else:
                found += differences(a[key], b[key], f"{where}.{key}")
        return found
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            first = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if differences(x, y)),
                min(len(a), len(b)),
            )
            near = f"{_short(a[first : first + 2])} | {_short(b[first : first + 2])}"
            return [f"{where}: {len(a)} entries | {len(b)}; first difference at {first}: {near}"]
        return [
            text
            for i, (x, y) in enumerate(zip(a, b, strict=False))
            for text in differences(x, y, f"{where}[{i}]")
        ]
    if _numbers(a, b):
        return [] if close(a, b) else [f"{where}: {a} | {b}"]
    return [] if a == b and type(a) is type(b) else [f"{where}: {_short(a)} | {_short(b)}"]


def _numbers(a: Any, b: Any) -> bool:
    """Numbers, but no booleans: 1 and 1.0 agree, as they do for everybody who reads a log."""
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (a, b))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 220 else text[:217] + "..."


def array_differences(a: Any, b: Any) -> list[str]:
    found = [f"array only in the reference: {name}" for name in set(a.files) - set(b.files)]
    found += [f"array only in ours: {name}" for name in set(b.files) - set(a.files)]
    for name in sorted(set(a.files) & set(b.files)):
        x, y = a[name], b[name]
        if x.shape != y.shape:
            found.append(f"{name}: shape {x.shape} | {y.shape}")
        elif x.dtype != y.dtype:
            found.append(f"{name}: {x.dtype} | {y.dtype}")
        elif not np.allclose(x, y, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
            first = int(np.argmax(~np.isclose(x, y, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True).ravel()))
            found.append(
                f"{name}: off by {np.nanmax(gap):.3g} of {np.nanmax(np.abs(x)):.3g}, first at {first}"
            )
    return found


def compare_case(reference: Path, ours: Path) -> tuple[str, list[str]]:
    """The verdict of one case (agree, differs, as documented, missing) and what differs."""
    if not ours.exists():
        return "missing", ["drivetrain has not run this case"]
    a, b = json.loads(reference.read_text()), json.loads(ours.read_text())
    if b["ours"]:
        if b["status"] == "ok":
            return "as documented", []
        return "differs", [f"our documented behaviour does not hold: {': '.join(b['error'])}"]
    if a["status"] == "error" and a["error"][0] == "ZeroDivisionError" and b["status"] == "ok":
        return "only ours runs", []  # the reference divides by a count of steps that is 0
    if a["status"] != b["status"]:
        return "differs", [f"{side['status']} {': '.join(side.get('error', []))}" for side in (a, b)]
    if a["status"] == "error":
        return "both refuse", [f"{' '.join(side['error'])[:150]!r}" for side in (a, b)]
    found = differences(a["values"], b["values"])
    with np.load(reference.with_suffix(".npz")) as x, np.load(ours.with_suffix(".npz")) as y:
        found += array_differences(x, y)
    return ("differs" if found else "agree"), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--lines", type=int, default=6, help="differences shown for a case")
    options = parser.parse_args()
    verdicts: dict[str, int] = {}
    print(f"{'case':46} {'verdict':14} {'reference s':>11} {'ours s':>7}")
    for path in sorted(options.reference.glob("*.json")):
        ours = options.ours / path.name
        verdict, found = compare_case(path, ours)
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        times = [json.loads(p.read_text()).get("seconds", "-") if p.exists() else "-" for p in (path, ours)]
        print(f"{path.stem.replace('--', '/'):46} {verdict:14} {times[0]:>11} {times[1]:>7}")
        for text in found[: options.lines]:
            print(f"      {text}")
        if len(found) > options.lines:
            print(f"      ... and {len(found) - options.lines} more")
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    wrong = verdicts.get("differs", 0) + verdicts.get("missing", 0)
    return 1 if wrong or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
