"""What the documentation lists is what is there."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib

from support.pages import ROOT

from drivetrain import discover, hookspecs
from drivetrain.cli.build import PARTS, READERS
from drivetrain.cli.config import FILE_KEYS, SECTIONS

DOCS = ROOT / "docs"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_arguments_page_is_what_the_arguments_say() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "make_arguments.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_hook_has_a_heading_with_its_arguments() -> None:
    headings = re.findall(r"^### `(.+)`$", text_of("hooks.md"), re.MULTILINE)
    expected = []
    for spec in hookspecs.SPECS:
        for name, function in vars(spec).items():
            if name.startswith("_"):
                continue
            arguments = list(inspect.signature(function).parameters)[1:]
            expected.append(f"{name}({', '.join(arguments)})")
    assert headings == expected


def test_every_option_of_the_built_in_plugins_is_in_a_table() -> None:
    """Each with its options, on the page of its kind."""
    pages = {
        "optimizer": "optimizers-and-schedulers.md",
        "scheduler": "optimizers-and-schedulers.md",
        "precision": "precision.md",
        "transform": "transforms.md",
    }
    for kind, page in pages.items():
        text = text_of(page)
        for name in discover.names(kind):
            entry = discover.find(kind, name)
            if entry.distribution != "drivetrain":
                continue
            assert f"`{name}`" in text, name
            options = discover.load_info(kind, name).options_class()
            for option in dataclasses.fields(options) if options else ():
                assert f"`{option.name}`" in text, f"{name}: {option.name}"


def test_every_key_of_a_config_is_named() -> None:
    text = text_of("command-line.md")
    for section in SECTIONS:
        assert f"[{section}]" in text
    for key in (*FILE_KEYS, *PARTS):
        assert f"`{key}`" in text, key
    for ending in READERS:
        assert f"`{ending}`" in text, ending


def test_files_of_a_checkpoint_are_named() -> None:
    from drivetrain.checkpoint import contents

    text = text_of("checkpoints.md")
    for name in re.findall(r"^ {8}([\w-]+\.json|[\w-]+\.safetensors)", contents.__doc__ or "", re.MULTILINE):
        assert f"`{name}`" in text, name


def test_readme_names_every_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for group, points in project["entry-points"].items():
        for name in points:
            assert f"`{name}`" in readme, f"{group}: {name} is not in the README's table"
