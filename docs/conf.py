"""How Sphinx builds these pages: `nox -s docs`."""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]

project = "drivetrain"
author = "The drivetrain authors"
copyright = author
release = version = _PROJECT["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
suppress_warnings: list[str] = []
nitpicky = True

html_theme = "furo"
html_title = "drivetrain"
html_static_path = ["_static"]
html_css_files = ["drivetrain.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"sidebar_hide_name": False}
pygments_style = "friendly"
pygments_dark_style = "native"
