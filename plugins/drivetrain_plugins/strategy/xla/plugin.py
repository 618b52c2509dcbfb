"""The strategy `xla`, which its probe refuses before it is ever made."""

from __future__ import annotations

from drivetrain.errors import PluginError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import Strategy


class XLAPlugin:
    """The strategy `xla`."""

    @hookimpl
    def make_strategy(self, run: Run) -> Strategy:
        """There is none.

        Raises:
            PluginError: always; a run is refused by the probe before it comes here.
        """
        raise PluginError("Strategy 'xla' is not there yet: leave tpu_num_cores out.")
