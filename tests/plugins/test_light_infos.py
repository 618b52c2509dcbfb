"""The info modules of optimizers, schedules and precisions cost nothing to read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from drivetrain.plugin import PluginInfo, import_string
from drivetrain_plugins import optimizer, precision, scheduler

INFOS = [
    info
    for module in (optimizer, scheduler, precision)
    for info in vars(module).values()
    if type(info) is PluginInfo
]


def test_they_import_no_torch():
    code = (
        "import sys, drivetrain_plugins.optimizer, drivetrain_plugins.scheduler, drivetrain_plugins.precision\n"
        "import drivetrain_plugins.optimizer.options, drivetrain_plugins.scheduler.options\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("info", INFOS, ids=lambda info: f"{info.kind}-{info.name}")
def test_what_they_name_is_there_and_answers_to_the_name(info, make_run):
    maker = import_string(info.implementation)
    options = info.options_class()
    plugin = maker(options()) if options else maker()
    assert plugin.name == info.name
    assert hasattr(plugin, f"make_{info.kind}")
    args = make_run().args
    assert all(hasattr(args, name) for name in info.arguments)
