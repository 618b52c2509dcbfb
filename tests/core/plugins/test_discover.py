"""Discovery reads metadata alone; loading an info says what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.strangers import Site

from drivetrain import ConfigurationError, PluginError, discover
from drivetrain.plugin import KINDS


def test_listing_imports_neither_torch_nor_any_plugin(site: Site) -> None:
    site.add(
        "drivetrain-loud",
        {"callback": {"loud": "loud_stranger:INFO"}},
        loud_stranger="raise SystemExit('imported')",
    )
    code = (
        "import sys\n"
        "from drivetrain import discover\n"
        "found = discover.entries()\n"
        "assert any(entry.name == 'loud' and entry.distribution == 'drivetrain-loud' for entry in found), found\n"
        "assert any(entry.name == 'single' for entry in found)\n"
        "heavy = [name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy', 'drivetrain_plugins', 'loud_stranger')]\n"
        "assert not heavy, heavy\n"
    )
    environment = {"PYTHONPATH": str(site.folder), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_info_imports_no_torch(site: Site) -> None:
    """Every info of our own is read without the engine that it stands for."""
    code = (
        "import sys\n"
        "from drivetrain import discover\n"
        "for entry in discover.entries():\n"
        "    if entry.distribution == 'drivetrain':\n"
        "        discover.load_info(entry.kind, entry.name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_kind_has_one_of_our_own() -> None:
    ours = {entry.kind for entry in discover.entries() if entry.distribution == "drivetrain"}
    assert ours == set(KINDS)


def test_entries_are_in_the_order_of_kinds_and_names(site: Site) -> None:
    site.plugin("callback", "zebra")
    site.plugin("callback", "aardvark")
    found = discover.entries()
    order = [(KINDS.index(entry.kind), entry.name) for entry in found]
    assert order == sorted(order)
    assert "zebra" in discover.names("callback")


def test_an_unknown_plugin_is_answered_with_the_nearest_and_the_installed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        discover.find("strategy", "singel")
    assert str(caught.value).startswith("Unknown strategy 'singel'. Did you mean 'single'? Installed: ")
    assert "ddp" in str(caught.value)


def test_two_distributions_with_one_name(site: Site) -> None:
    site.plugin("strategy", "ring", distribution="drivetrain-ring")
    site.plugin("strategy", "ring", distribution="torch-ring")
    with pytest.raises(ConfigurationError) as caught:
        discover.find("strategy", "ring")
    assert str(caught.value) == (
        "The strategy 'ring' is brought by two distributions, drivetrain-ring and torch-ring; uninstall one of them."
    )


def test_one_distribution_that_stands_twice_on_the_path_is_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.plugin("strategy", "ring")
    again = Site(tmp_path / "again")
    again.folder.mkdir()
    monkeypatch.syspath_prepend(str(again.folder))
    again.plugin("strategy", "ring")
    assert discover.find("strategy", "ring").distribution == "drivetrain-ring"


def test_one_name_may_serve_several_kinds(site: Site) -> None:
    site.plugin("strategy", "ring", distribution="drivetrain-ring")
    site.plugin("callback", "ring", distribution="drivetrain-ring-log")
    assert discover.load_info("strategy", "ring").kind == "strategy"
    assert discover.load_info("callback", "ring").kind == "callback"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "import no_such_module_at_all",
            "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        ("INFO = 1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("OTHER = None", "cannot be loaded: AttributeError"),
        ("INFO = object()", "names broken_stranger:INFO, which is no PluginInfo but a object."),
        (
            "from drivetrain import PluginInfo\n"
            "INFO = PluginInfo(name='other', kind='strategy', summary='', implementation='a:b')",
            "registers strategy 'broken', but broken_stranger:INFO calls itself strategy 'other'.",
        ),
        (
            "from drivetrain import PluginInfo\nINFO = PluginInfo(name='broken', kind='strategy', summary='', implementation='a.b')",
            "cannot be loaded: ValueError: Plugin 'broken' must name its implementation as 'package.module:attribute'.",
        ),
    ],
)
def test_a_broken_info_is_named(site: Site, source: str, sentence: str) -> None:
    site.add("drivetrain-broken", {"strategy": {"broken": "broken_stranger:INFO"}}, broken_stranger=source)
    with pytest.raises(PluginError) as caught:
        discover.load_info("strategy", "broken")
    assert sentence in str(caught.value)
    assert "drivetrain-broken" in str(caught.value)
