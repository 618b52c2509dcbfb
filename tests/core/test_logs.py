"""`log_level` shows its lines in a script that does not configure logging, and leaves those that do alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, sys
from support.toy import Toy, rows
from drivetrain import Trainer, TrainingArguments

log = logging.getLogger("drivetrain.some.part")
Trainer(Toy(), TrainingArguments(sys.argv[1], report_to="none"), train_dataset=rows(4))
log.info("an info under passive")
logging.getLogger().setLevel("INFO")
log.info("an info under passive, of a program that wants them")
logging.getLogger().setLevel("WARNING")
for level in ("info", "error"):
    Trainer(Toy(), TrainingArguments(sys.argv[1], log_level=level, report_to="none"), train_dataset=rows(4))
    log.info("an info under %s", level)
    log.error("an error under %s", level)
logging.basicConfig(format="mine: %(message)s")
log.error("told once")
"""


def test_lines_are_shown_once(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=tests,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if "under" in line or "told" in line]
    assert lines[0] == "an info under passive, of a program that wants them"
    assert lines[1:] == [
        "an info under info",
        "an error under info",
        "an error under error",
        "mine: told once",
    ]
