"""Strangers' packages, as a stranger would install them."""

from __future__ import annotations

import pytest
from support.installed import PACKAGES, ROOT, Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Every package of contrib."""
    made = Site(tmp_path_factory.mktemp("site"))
    made.install(*(ROOT / "contrib" / package for package in PACKAGES))
    return made
