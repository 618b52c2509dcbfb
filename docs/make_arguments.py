"""Writes docs/arguments.md from what the arguments say of themselves: `python docs/make_arguments.py [--check]`.

What shows that an argument has its effect is from tests/core/arguments/effects.toml, which a test walks. A test runs
this with `--check`, which ends with 1 where the page is not what it would write, or names a test that is not there.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from drivetrain.arguments.parsing import Row, field_table

PAGE = Path(__file__).with_name("arguments.md")
ROOT = PAGE.parents[1]
EFFECTS = tomllib.loads((ROOT / "tests/core/arguments/effects.toml").read_text(encoding="utf-8"))
PLACES = {
    "weights": "weights",
    "log": "the log",
    "results": "what is returned",
    "files": "files",
    "messages": "messages",
    "calls": "calls of torch",
    "operations": "operations of torch",
}

TOPICS = {
    "output": "Where results go, and what is done",
    "data": "Batches and data",
    "optimization": "Optimizer",
    "schedule": "Length of the run, and the learning rate",
    "evaluation": "Evaluation",
    "reporting": "Logging and seeds",
    "saving": "Checkpoints",
    "precision": "Precision",
    "distributed": "Several devices",
    "compilation": "Compilation and memory",
    "hub": "Hub",
    "search": "Search",
    "ours": "Beyond the documented",
    "deprecated": "Other spellings",
}

HEAD = """\
# Arguments

<!-- Written by docs/make_arguments.py. -->

`TrainingArguments` takes the documented arguments of transformers 4.34.0, in that order by position, and then
drivetrain's own, by keyword only. They stand here by subject; `drivetrain args WORD` searches them in a terminal.

Behind each name: what it may be, its default, and its *owner*, the one who reads it: `core`, the plugin of a slot
(`optimizer`), or one plugin (`strategy:fsdp`). An owner that is not installed makes the argument an error that
says so ([what is not there yet](index.md#what-is-there)). An argument that is set and has no effect under the
others is named once in the log, and in the plan that `drivetrain train` prints.

No argument is silent: a test (`tests/core/arguments/test_every_argument.py`) trains with each of them and without. The
last line of an entry tells in what the two runs differ, and names the test that shows the argument's whole meaning,
where there is one.

On the command line underscores may be dashes (`--warmup-steps 100`); a flag may stand alone (`--bf16`), and
`--no-bf16` is its opposite. In a config file arguments stand under `[training]`.
"""


def entry(row: Row) -> str:
    """One argument, as an entry of a definition list."""
    default = f"default `{row.default}`" if row.default else "required"
    by_keyword = "" if row.positional else ", by keyword"
    kind = row.type if len(row.type) < 90 else row.type.replace(", or None", ", or nothing")
    about = f"*{kind}; {default}{by_keyword}; read by {row.owner}.*"
    return f"`{row.name}`\n: {row.help}\\\n  {about}\\\n  {shown(row.name)}\n"


def shown(name: str) -> str:
    """What comes of an argument that is set, and the test that shows it."""
    cases: list[dict[str, Any]] = EFFECTS["effects"][name]
    changed = {place for case in cases for place in case.get("changes", "").split()}
    places = [told for place, told in PLACES.items() if place in changed]
    parts = [f"seen in {', '.join(places)}"] if places else []
    for case in cases:
        if "like" in case:
            spelled = ", ".join(f"{key}={value!r}" for key, value in case["like"].items())
            same = f"the same as {spelled}" if spelled else "the same without it"
            parts.append(f"{same}, with a warning" if "warns" in case else same)
    if any("inert" in case for case in cases):
        parts.append("said where it has no effect")
    if any("error" in case for case in cases):
        parts.append("an error where it cannot be")
    if name in EFFECTS["tests"]:
        parts.append(f"`{existing(name, EFFECTS['tests'][name])}`")
    told = "; ".join(parts)
    return f"*{told[0].upper()}{told[1:]}.*"


def existing(name: str, test: str) -> str:
    """A test as it is written.

    Raises:
        SystemExit: it is not there, or its file does not name the argument.
    """
    file, _, function = test.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
    if f"def {function}(" not in text or name not in text:
        raise SystemExit(f"tests/core/arguments/effects.toml: {test} is no test of {name}.")
    return test


def page() -> str:
    """The whole page."""
    rows = field_table()
    left = {row.topic for row in rows} - set(TOPICS)
    assert not left, f"no title for the topics {left}"
    parts = [HEAD]
    for topic, title in TOPICS.items():
        found = [row for row in rows if row.topic == topic]
        if found:
            parts.append(f"## {title}\n\n" + "\n".join(entry(row) for row in found))
    return "\n".join(parts)


def main() -> int:
    """Writes the page, or with `--check` compares it."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        print("docs/arguments.md is out of date; run: python docs/make_arguments.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
