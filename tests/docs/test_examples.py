"""The examples in the documentation run, and print what the documentation says they print.

On each page the Python blocks run one after another in one namespace, in an empty folder; a block with a comment
`<!-- file: NAME -->` before it is written there, a `pyproject.toml` among them is installed, and what a console
block says after a command is what the command prints.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pages import PAGES, ROOT, blocks

from drivetrain import discover

LANGUAGES = {"python", "toml", "console", "sh", "text", "ini"}
RUN = [
    page for page in PAGES if any(b.language in ("python", "console") and not b.skipped for b in blocks(page))
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]
    monkeypatch.undo()
    discover.refresh()


def install(folder: Path, text: str) -> None:
    """Gives the package of a pyproject.toml the metadata that pip would give it."""
    project = tomllib.loads(text)["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    discover.refresh()


def check_console(folder: Path, text: str) -> None:
    """Runs each `$ command`, and compares what it prints with the lines below it; `...` stands for any lines."""
    command, expected = "", ""
    for line in [*text.splitlines(), "$ "]:
        if not line.startswith("$ "):
            expected += line.rstrip() + "\n"
            continue
        if command:
            words = shlex.split(command)
            assert words[0] == "drivetrain", f"only drivetrain is run here, not {words[0]}"
            done = subprocess.run(
                [sys.executable, "-m", *words],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "COLUMNS": "110", "PYTHONPATH": str(folder), "NO_COLOR": "1"},
            )
            printed = "".join(line.rstrip() + "\n" for line in (done.stdout + done.stderr).splitlines())
            rest = printed
            for part in expected.split("...\n"):
                assert part in rest, f"{command} printed:\n{printed}"
                rest = rest[rest.index(part) + len(part) :]
            if "...\n" not in expected:
                assert printed.strip() == expected.strip(), f"{command} printed:\n{printed}"
        command, expected = line[2:], ""


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_examples_run(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.skipped:
            continue
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if path.name == "pyproject.toml":
                install(folder, block.text)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        elif block.language == "console":
            check_console(folder, block.text)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences_are_whole(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{name_of(page)}, line {block.line}: {block.language}"
        assert block.skipped is None or block.skipped, (
            f"{name_of(page)}, line {block.line}: say why it is not run"
        )
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            compile(block.text, str(page), "exec")
