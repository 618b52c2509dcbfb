"""What must hold of the source itself: its size, what it imports, and that every hook is documented and tested."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import drivetrain
from drivetrain.hookspecs import SPECS

ROOT = Path(__file__).parents[2]
CORE = Path(str(drivetrain.__file__)).parent
CHECKED = ("core", "plugins", "contrib", "tests", "examples", "docs", "bench", "parity")
HOOKS = {
    name: function for spec in SPECS for name, function in vars(spec).items() if not name.startswith("_")
}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_the_loop_and_the_hooks_are_short() -> None:
    assert lines(CORE / "loop.py") < 300
    assert lines(CORE / "hookspecs.py") < 250


def test_no_file_is_longer_than_600_lines() -> None:
    found = {str(path.relative_to(ROOT)): lines(path) for path in sources(*CHECKED)}
    assert len(found) > 100
    assert {name: count for name, count in found.items() if count > 600} == {}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_core_imports_no_plugin_and_no_vendor() -> None:
    allowed = {
        "drivetrain",
        "torch",
        "numpy",
        "pluggy",
        "packaging",
        "safetensors",
        "typer",
        "rich",
        "tomlkit",
        "xxhash",
    }
    # The command line asks for these two where a config names files of data, or a model's folder.
    optional = {"datasets", "transformers"}
    # The public kit runs under pytest.
    also = {"cli": optional, "testing": {"pytest"}}
    outside = {}
    for path in sources("core"):
        within = allowed | also.get(path.parent.name, set())
        outside[str(path.relative_to(ROOT))] = imported(path) - within - set(sys.stdlib_module_names)
    assert {name: found for name, found in outside.items() if found} == {}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook: str) -> None:
    """In its docstring, and in docs/hooks.md with its arguments."""
    assert inspect.getdoc(HOOKS[hook]), hook
    arguments = ", ".join(name for name in inspect.signature(HOOKS[hook]).parameters if name != "self")
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert f"`{hook}({arguments})`" in text


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_that_names_it(hook: str) -> None:
    """A test implements it, or asserts that it was called."""
    named = re.compile(rf"\b{hook}\b")
    found = [
        p
        for p in sources("tests", "contrib")
        if p != Path(__file__) and named.search(p.read_text(encoding="utf-8"))
    ]
    assert found, f"No test names the hook {hook}."


def test_no_machine_path_and_no_host_is_written_down() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/\w")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix not in (".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".cfg", "")
            or not path.is_file()
        ):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []
