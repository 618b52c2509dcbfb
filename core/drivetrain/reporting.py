"""`report_to="all"`: which loggers that means here, and what is said of it."""

from __future__ import annotations

import logging
from typing import Any

from drivetrain import discover
from drivetrain.errors import ConfigurationError, PluginError
from drivetrain.plugin import PluginInfo
from drivetrain.requirements import missing

logger = logging.getLogger("drivetrain")


def all_loggers(args: Any) -> tuple[list[PluginInfo], str]:
    """The loggers that are installed and can work here, but for those that write only when they are named.

    A logger that is broken, or whose probe says why it cannot, is left out: nobody has asked for it by name.

    Args:
        args: what probes read.

    Returns:
        Their infos, and the line that names them; it is empty where there is none.
    """
    found, left_out = [], []
    for name in discover.names("logger"):
        try:
            info = discover.load_info("logger", name)
        except (PluginError, ConfigurationError) as error:
            logger.warning("%s", error)
            continue
        if info.by_name_alone or missing(info):
            continue
        if reason := _reason(info, args):
            left_out.append(f"{name} ({reason.rstrip('.')})")
        else:
            found.append(info)
    if not found and not left_out:
        return found, ""
    names = ", ".join(info.name for info in found) or "none"
    without = f" Left out: {', '.join(left_out)}." if left_out else ""
    return found, f"report_to='all': the loggers that are installed are active, which are {names}.{without}"


def _reason(info: PluginInfo, args: Any) -> str:
    if info.probe is None:
        return ""
    try:
        told = info.probe(args)
    except Exception as error:  # a stranger's code
        return f"its probe failed: {type(error).__name__}: {error}"
    return told if isinstance(told, str) else " ".join(told or ())
