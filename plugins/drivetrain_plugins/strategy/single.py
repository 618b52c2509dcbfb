"""One process, one device."""

from __future__ import annotations

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.whole_parameters import WholeParameters


class SingleStrategy(WholeParameters):
    """Every parameter whole, on one device."""


class SinglePlugin:
    """The strategy `single`."""

    @hookimpl
    def make_strategy(self, run: Run) -> SingleStrategy:
        """One for each run."""
        return SingleStrategy(run)
