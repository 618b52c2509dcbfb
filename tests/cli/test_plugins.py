"""`drivetrain plugins`: listing by metadata, showing, switching on and off."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain import discover, settings
from drivetrain.errors import ConfigurationError

Command = Callable[..., Any]

STRANGER = '''
from dataclasses import dataclass
from drivetrain.plugin import PluginInfo, hookimpl


@dataclass(frozen=True)
class Options:
    """Options.

    Attributes:
        every: updates between two greetings;
            the first is at the first.
    """

    every: int = 5


class Greeter:
    def __init__(self, options):
        self.options = options

    @hookimpl
    def on_step_end(self, run):
        print("hello")

    @hookimpl
    def on_train_end(self, run):
        print("bye")


GREETER = PluginInfo(
    name="greeter", kind="callback", summary="Says hello.", implementation="stranger:Greeter",
    options=Options, after=("progress",), conflicts={"callback:printer": "disable one of them."},
)
HEAVY = PluginInfo(
    name="heavy_one", kind="callback", summary="Needs a lot.", implementation="stranger:Greeter",
    requires=("no-such-engine>=2",), extra="heavy-one", distribution="stranger",
)
DOUBTFUL = PluginInfo(
    name="doubtful", kind="callback", summary="Cannot work here.", implementation="stranger:Greeter",
    probe=lambda args: "This machine has no such device.",
)
'''


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution of somebody else with three callbacks and a broken one, installed on the path."""
    site = tmp_path / "site"
    info = site / "stranger-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\nProvides-Extra: heavy-one\n"
        'Requires-Dist: no-such-engine>=2; extra == "heavy-one"\n'
    )
    (info / "entry_points.txt").write_text(
        "[drivetrain.callback]\ngreeter = stranger:GREETER\nheavy_one = stranger:HEAVY\n"
        "doubtful = stranger:DOUBTFUL\nbroken_one = stranger_that_is_gone:INFO\n"
    )
    (site / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(site))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    discover.entries.cache_clear()
    discover.load_info.cache_clear()
    yield folder  # type: ignore[misc]
    discover.entries.cache_clear()
    discover.load_info.cache_clear()
    sys.modules.pop("stranger", None)


def lines_of(text: str) -> dict[str, str]:
    """Lines of the list by plugin name."""
    return {line.split()[1]: line for line in text.splitlines() if len(line.split()) > 2}


def test_list_shows_kind_origin_and_state(stranger: Path, drivetrain: Command) -> None:
    result = drivetrain("plugins", "list")
    assert result.exit_code == 0
    lines = lines_of(result.stdout)
    assert lines["greeter"].split() == ["callback", "greeter", "stranger", "1.2", "ready"]
    assert lines["heavy_one"].endswith("not installed: pip install 'stranger[heavy-one]'")
    assert "drivetrain" in lines["adamw_torch"]
    assert "stranger" not in sys.modules  # neither imported nor probed


def test_every_installed_plugin_is_listed(stranger: Path, drivetrain: Command) -> None:
    listed = lines_of(drivetrain("plugins", "list").stdout)
    assert {entry.name for entry in discover.entries()} <= set(listed)


def test_probe_says_why_not(stranger: Path, drivetrain: Command) -> None:
    lines = lines_of(drivetrain("plugins", "list", "--probe").stdout)
    assert lines["greeter"].endswith("ready")
    assert lines["doubtful"].endswith("unsupported here: This machine has no such device.")
    assert (
        "broken: Callback 'broken_one' of stranger 1.2 cannot be loaded: ModuleNotFoundError"
        in lines["broken_one"]
    )
    assert lines["heavy_one"].endswith("not installed: pip install 'stranger[heavy-one]'")


def test_show_tells_all(stranger: Path, drivetrain: Command) -> None:
    result = drivetrain("plugins", "show", "greeter")
    assert result.exit_code == 0
    text = result.stdout
    assert "Says hello." in text
    assert "on_step_end, on_train_end" in text
    assert "comes after" in text
    assert "progress" in text
    assert "callback:printer: disable one of them." in text
    assert "updates between two greetings; the first is at the first." in text
    assert "drivetrain plugins enable greeter" in text


def test_show_a_broken_plugin(stranger: Path, drivetrain: Command) -> None:
    result = drivetrain("plugins", "show", "broken_one")
    assert "broken: Callback 'broken_one'" in result.stdout


def test_show_knows_every_plugin_of_ours(drivetrain: Command) -> None:
    for entry in discover.entries():
        result = drivetrain("plugins", "show", f"{entry.kind}:{entry.name}")
        assert result.exit_code == 0, (entry, result.stderr)
        assert "broken" not in result.stdout, result.stdout
        assert "not known" not in result.stdout or "not installed" in result.stdout, result.stdout


def test_unknown_names_get_the_nearest(stranger: Path, drivetrain: Command) -> None:
    for command in ("show", "enable"):
        result = drivetrain("plugins", command, "greter")
        assert result.exit_code == 2
        assert "Unknown plugin 'greter'. Did you mean 'greeter'?" in result.stderr


def test_enable_and_disable_keep_what_the_file_says(stranger: Path, drivetrain: Command) -> None:
    path = stranger / "drivetrain.toml"
    before = "# ours\n[plugins.greeter]  # its options\nevery = 3  # often\n"
    path.write_text(before)
    assert (
        "Enabled: callback 'greeter', in drivetrain.toml."
        in drivetrain("plugins", "enable", "greeter").stdout
    )
    text = path.read_text()
    assert "# ours" in text
    assert "[plugins.greeter]  # its options\nevery = 3  # often\n" in text
    found = settings.load()
    assert found.enabled == ("greeter",)
    assert found.options == {"greeter": {"every": 3}}
    assert lines_of(drivetrain("plugins", "list").stdout)["greeter"].endswith("ready, enabled")

    assert "Already enabled" in drivetrain("plugins", "enable", "greeter").stdout
    assert path.read_text() == text
    assert drivetrain("plugins", "disable", "greeter").exit_code == 0
    assert settings.load().enabled == ()
    assert "every = 3  # often" in path.read_text()
    again = drivetrain("plugins", "disable", "greeter")
    assert again.exit_code == 2
    assert "Plugin 'greeter' is not enabled" in again.stderr


def test_enable_makes_the_file(stranger: Path, drivetrain: Command) -> None:
    assert drivetrain("plugins", "enable", "greeter").exit_code == 0
    assert (stranger / "drivetrain.toml").read_text().strip() == '[plugins]\nenable = ["greeter"]'


def test_enable_writes_to_pyproject_where_it_has_the_table(stranger: Path, drivetrain: Command) -> None:
    (stranger / "pyproject.toml").write_text('[project]\nname = "x"  # a name\n\n[tool.drivetrain]\n')
    below = stranger / "deep" / "down"
    below.mkdir(parents=True)
    assert drivetrain("plugins", "enable", "greeter").exit_code == 0
    assert not (stranger / "drivetrain.toml").exists()
    assert 'name = "x"  # a name' in (stranger / "pyproject.toml").read_text()
    assert settings.load(below).enabled == ("greeter",)


def test_two_places_for_settings_are_refused(stranger: Path) -> None:
    (stranger / "pyproject.toml").write_text("[tool.drivetrain]\n")
    (stranger / "drivetrain.toml").write_text("")
    with pytest.raises(ConfigurationError, match="both hold settings; keep one of the two"):
        settings.load()


def test_kinds_that_arguments_choose_are_not_enabled(stranger: Path, drivetrain: Command) -> None:
    for name, cure in (
        ("ddp", 'strategy = "ddp"'),
        ("cosine", "lr_scheduler_type"),
        ("tensorboard", "report_to"),
    ):
        result = drivetrain("plugins", "enable", name)
        assert result.exit_code == 2
        assert cure in result.stderr
    result = drivetrain("plugins", "enable", "progress")
    assert result.exit_code == 2
    assert "disable_tqdm" in result.stderr


def test_what_cannot_be_loaded_is_not_enabled(stranger: Path, drivetrain: Command) -> None:
    for name, reason in (
        ("broken_one", "cannot be loaded"),
        ("heavy_one", "pip install 'stranger[heavy-one]'"),
    ):
        result = drivetrain("plugins", "enable", name)
        assert result.exit_code == 2
        assert reason in result.stderr
    assert not (stranger / "drivetrain.toml").exists()


def test_a_plugin_that_is_gone_can_be_disabled(stranger: Path, drivetrain: Command) -> None:
    (stranger / "drivetrain.toml").write_text('[plugins]\nenable = ["gone"]\n')
    with pytest.raises(ConfigurationError, match="Unknown plugin 'gone'"):
        settings.load()
    listed = drivetrain("plugins", "list")
    assert "greeter" in listed.stdout
    assert listed.exit_code == 2
    assert "Unknown plugin 'gone'" in listed.stderr
    assert drivetrain("plugins", "disable", "gone").exit_code == 0
    assert settings.load().enabled == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[plugin]\n", "unknown key 'plugin'. Did you mean 'plugins'?"),
        ('[plugins]\nenable = "x"\n', 'write enable = ["NAME"]'),
        ("[plugins]\nx = 1\n", "write [plugins.x]"),
        ("[plugins\n", "is not valid TOML"),
    ],
)
def test_mistakes_in_settings(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "drivetrain.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        settings.load(tmp_path)
    assert expected in str(caught.value)
    assert "drivetrain.toml" in str(caught.value)
