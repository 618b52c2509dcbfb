"""Forms of a report of runs: what they say of themselves. The name is the ending of the file."""

from __future__ import annotations

from drivetrain.plugin import PluginInfo

HTML = PluginInfo(
    name="html",
    kind="report",
    summary="One page with plots of one run or several, which needs no network; it can follow a run.",
    implementation="drivetrain_plugins.report.html:Html",
    requires=("plotly>=6",),
    extra="report",
)

PNG = PluginInfo(
    name="png",
    kind="report",
    summary="The plots of a report as a picture.",
    implementation="drivetrain_plugins.report.png:Png",
    requires=("matplotlib>=3.8",),
    extra="report-png",
)

CSV = PluginInfo(
    name="csv",
    kind="report",
    summary="Every row of the log of one run or several as a table.",
    implementation="drivetrain_plugins.report.csv:Csv",
)
