"""Callbacks that come with drivetrain: what they say of themselves."""

from __future__ import annotations

from typing import Any

from drivetrain.plugin import Claim, PluginInfo, Weight


def _bar_wanted(args: Any) -> Claim | None:
    return None if args.disable_tqdm else Claim("disable_tqdm=False", Weight.DEFAULT)


def _bar_unwanted(args: Any) -> Claim | None:
    return Claim("disable_tqdm=True", Weight.DEFAULT) if args.disable_tqdm else None


PROGRESS = PluginInfo(
    name="progress",
    kind="callback",
    summary="A bar with loss, learning rate, throughput and time left; plain lines without a terminal.",
    implementation="drivetrain_plugins.callback.progress:ProgressCallback",
    arguments=("disable_tqdm",),
    chosen_by=_bar_wanted,
)

PRINTER = PluginInfo(
    name="printer",
    kind="callback",
    summary="Prints each row of the log as it is.",
    implementation="drivetrain_plugins.callback.printer:PrinterCallback",
    arguments=("disable_tqdm",),
    chosen_by=_bar_unwanted,
)

GRADIENT_NORMS = PluginInfo(
    name="gradient_norms",
    kind="callback",
    summary="Norms of the gradients, in all and by parameter group or parameter, every so many updates.",
    implementation="drivetrain_plugins.callback.gradient_norms:GradientNorms",
    options="drivetrain_plugins.callback.gradient_norms:GradientNormsOptions",
)
