"""What a plugin needs to be installed, and whether it is, by metadata alone."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from packaging.requirements import Requirement

from drivetrain.plugin import PluginInfo


def missing(info: PluginInfo) -> list[str]:
    """The requirements of a plugin that are not installed, by metadata alone."""
    lacking = []
    for text in info.requires:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = _installed(requirement)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(text)
    return lacking


def needs(info: PluginInfo, lacking: Sequence[str]) -> str:
    """What a plugin needs, what is there instead, and the line that installs it."""
    found = [(requirement.name, _installed(requirement)) for requirement in map(Requirement, lacking)]
    wrong = [f"{name} {version}" for name, version in found if version is not None]
    names = " and ".join(lacking)
    if wrong:
        state = f"but here is {' and '.join(wrong)}"
    else:
        state = "which is not installed" if len(lacking) == 1 else "which are not installed"
    line = f"'{info.distribution}[{info.extra}]'" if info.extra else " ".join(f"'{text}'" for text in lacking)
    return f"needs {names}, {state}. Run: pip install {line}"


def _installed(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None
