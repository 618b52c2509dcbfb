"""Help and listings import neither torch nor a plugin. Asserted by what is imported, not by time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
sys.argv = ["drivetrain", *sys.argv[1:]]
from drivetrain.cli import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print("MODULES" + json.dumps([code or 0, sorted(sys.modules)]))
"""


def modules_after(folder: Path, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert "MODULES" in done.stdout, done.stderr
    code, modules = json.loads(done.stdout.split("MODULES")[1])
    assert code == 0, done.stderr
    found: list[str] = modules
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("plugins", "--help"),
        ("checkpoints", "--help"),
        ("checkpoints", "list", "--help"),
        ("push", "--help"),
        ("plugins", "list"),
        ("args", "warmup"),
    ],
    ids=" ".join,
)
def test_light_commands_stay_light(tmp_path: Path, words: tuple[str, ...]) -> None:
    modules = modules_after(tmp_path, *words)
    heavy = (
        "torch",
        "numpy",
        "transformers",
        "datasets",
        "wandb",
        "tensorboard",
        "optuna",
        "huggingface_hub",
    )
    assert [name for name in modules if name.partition(".")[0] in heavy] == []
    if words[0] != "args":  # the arguments check the names of installed plugins, by metadata
        assert [name for name in modules if name.startswith("drivetrain_plugins")] == []


def test_listing_does_not_load_what_it_does_not_print_with(tmp_path: Path) -> None:
    """In a pipe the list is plain lines: no rich beyond what typer loads, no tomlkit where there are no settings."""
    bare = "import sys, typer; print('\\n'.join(sys.modules))"
    typer_alone = subprocess.run(
        [sys.executable, "-c", bare], capture_output=True, text=True, check=True
    ).stdout
    modules = set(modules_after(tmp_path, "plugins", "list")) - set(typer_alone.splitlines())
    assert modules & {"rich.table", "tomlkit", "pydantic"} == set()
