"""The guide *Write a strategy*: what it tells a reader to do is done, in an empty folder, with the files that it shows."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from support.installed import ROOT, Site
from support.pages import blocks

pytestmark = pytest.mark.timeout(1500)

GUIDE = ROOT / "docs" / "write-a-strategy.md"
TEXT = GUIDE.read_text(encoding="utf-8")
INCLUDED = re.compile(r"^```\{literalinclude\} (?P<path>\S+)\n(?P<options>(?::.*\n)*)```$", re.MULTILINE)


def included() -> list[tuple[Path, dict[str, str]]]:
    """The files that are shown, in order, with what is shown of each."""
    found = []
    for match in INCLUDED.finditer(TEXT):
        lines = match["options"].splitlines()
        options = {line.split(":", 2)[1]: line.split(":", 2)[2].strip() for line in lines}
        found.append(((GUIDE.parent / match["path"]).resolve(), options))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the first part, under the names that it gives them."""
    made = tmp_path_factory.mktemp("guide")
    for path, options in included():
        if "drivetrain-average" in path.parts and "caption" in options:
            shown = path.read_text(encoding="utf-8")
            if "end-at" in options:
                shown = shown[: shown.index("\n", shown.index(options["end-at"] + " =")) + 1]
            target = made / options["caption"].strip('"`')
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(shown, encoding="utf-8")
    return made


def commands() -> list[tuple[list[str], str]]:
    """What the guide's console blocks run, and what they say is printed."""
    found: list[tuple[list[str], str]] = []
    for block in blocks(GUIDE):
        if block.language == "console":
            for part in block.text.split("$ ")[1:]:
                command, _, printed = part.partition("\n")
                found.append((shlex.split(command), printed))
    return found


def check(printed: str, expected: str) -> None:
    """`...` stands for anything."""
    rest = "".join(line.rstrip() + "\n" for line in printed.splitlines())
    for part in expected.split("..."):
        assert part.strip() in rest, printed
        rest = rest[rest.index(part.strip()) + len(part.strip()) :]


@pytest.fixture(scope="module")
def installed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The package, as pip installs it from these files alone."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.install(folder)
    return site


def test_the_plugin_is_found(folder: Path, installed: Site) -> None:
    ((words, expected),) = [found for found in commands() if found[0][:2] == ["drivetrain", "plugins"]]
    check(installed.run(*words, folder=folder), expected)


@pytest.mark.soak
def test_it_trains_and_the_contract_passes(folder: Path, installed: Site) -> None:
    later = [found for found in commands() if found[0][:2] in (["drivetrain", "train"], ["pytest", "-q"])]
    assert [words[0] for words, _ in later] == ["drivetrain", "pytest"]
    for (words, expected), own in zip(later, (("--use-cpu",), ("-p", "no:cacheprovider")), strict=True):
        check(installed.run(*words, *own, folder=folder, timeout=700), expected)


def test_every_command_is_one_of_these() -> None:
    assert [words[:2] for words, _ in commands()] == [
        ["pip", "install"],
        ["drivetrain", "plugins"],
        ["drivetrain", "train"],
        ["pytest", "-q"],
    ]


def test_pip_is_told_what_the_package_says() -> None:
    """The command for the tests names the extra that brings pytest."""
    assert ["pip", "install", "-e", ".[test]"] in [words for words, _ in commands()]
    text = (ROOT / "contrib" / "drivetrain-average" / "pyproject.toml").read_text(encoding="utf-8")
    assert 'test = ["drivetrain[testing]"]' in text


def test_every_part_of_the_second_strategy_is_shown_or_named() -> None:
    """Of signsgd: each class and method; those that are like the first strategy's need no second look."""
    path = ROOT / "contrib" / "drivetrain-signsgd" / "drivetrain_signsgd" / "strategy.py"
    shown = {options["pyobject"] for found, options in included() if found == path}
    named = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            named.add(node.name)
            named |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    assert shown <= named
    like_the_first = {"setup", "wrap", "collect", "state_out", "close", "__init__"}
    left = {name for name in named if name not in shown and name.partition(".")[0] not in shown}
    assert {name.partition(".")[2] for name in left} <= like_the_first | {""}


def test_the_messages_are_those_that_are_given() -> None:
    """Each message in a table of mistakes, up to what stands for a name or number, is a text of the code."""
    texts = []
    for path in (ROOT / "core" / "drivetrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
    tables = TEXT[TEXT.index("## When it is not right") : TEXT.index("## Your idea")]
    rows = re.findall(r"^\| (?!mistake)[^|]+ \| ([^|]+) \|$", tables, re.MULTILINE)
    assert len(rows) > 10
    for message in rows:
        if message.startswith("Unknown strategy"):  # which test_packages.py sees
            continue
        for part in message.split("…"):
            words = part.strip(" .;:'")
            if words and not words.startswith(("2 times as large", "pluggy")):
                assert any(words in text for text in texts), words
