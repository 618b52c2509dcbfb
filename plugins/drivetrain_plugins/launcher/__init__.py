"""Launchers: who started the processes of a run."""

from __future__ import annotations

import os
from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight


def _started_by_torchrun(args: Any) -> Claim | None:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        return Claim("RANK, WORLD_SIZE and MASTER_ADDR are set", Weight.ENVIRONMENT)
    return None


TORCHRUN = PluginInfo(
    name="torchrun",
    kind="launcher",
    summary="Processes started by torchrun, or by anything that sets the same environment.",
    implementation="drivetrain_plugins.launcher.torchrun:TorchrunPlugin",
    arguments=("ddp_backend", "ddp_timeout", "local_rank"),
    chosen_by=_started_by_torchrun,
)
