"""Strangers' distributions, really installed: packages with metadata and entry points in a folder on the path."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drivetrain import discover


class Site:
    """A folder on the path into which distributions are put."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        points: Mapping[str, Mapping[str, str]],
        *,
        version: str = "1.0",
        **modules: str,
    ) -> None:
        """Installs a distribution.

        Args:
            distribution: its name.
            points: kind -> name -> "module:INFO".
            version: its version.
            modules: module name -> source.
        """
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = []
        for kind, named in points.items():
            lines.append(f"[drivetrain.{kind}]")
            lines += [f"{name} = {value}" for name, value in named.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(source))
        discover.refresh()

    def plugin(
        self, kind: str, name: str, *, fields: str = "", body: str = "", distribution: str | None = None
    ) -> str:
        """Installs one plugin of a kind in a module of its own, and returns the module's name.

        Args:
            kind, name: of the plugin.
            fields: more of its `PluginInfo`, as source.
            body: what goes into its class `Plugin`, as source; by default it has nothing.
            distribution: by default `drivetrain-NAME`.
        """
        module = f"stranger_{kind}_{name.replace('-', '_')}"
        while (self.folder / f"{module}.py").exists():
            module += "_too"
        place = 'place="before_wrap", ' if kind == "transform" and "place=" not in fields else ""
        source = (
            "from drivetrain import Claim, PluginInfo, Weight, hookimpl\n\n"
            f'INFO = PluginInfo(name="{name}", kind="{kind}", summary="A stranger.", '
            f'implementation="{module}:Plugin", {place}{fields})\n\n\n'
            "class Plugin:\n" + textwrap.indent(textwrap.dedent(body) or "pass\n", "    ")
        )
        self.add(
            distribution or f"drivetrain-{name.replace('_', '-')}",
            {kind: {name: f"{module}:INFO"}},
            **{module: source},
        )
        return module


def site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site for one test; what it brought is forgotten afterwards."""
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    try:
        yield Site(folder)
    finally:
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if origin.startswith(str(folder)):
                del sys.modules[name]
        monkeypatch.undo()
        discover.refresh()
