"""The strategy `fairscale`: which engine `sharded_ddp` means."""

from __future__ import annotations

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import Strategy
from drivetrain_plugins.strategy.fairscale.info import FULLY, words
from drivetrain_plugins.strategy.fairscale.options import FairscaleOptions


class FairscalePlugin:
    """The strategy `fairscale`."""

    def __init__(self, options: FairscaleOptions) -> None:
        self.options = options

    @hookimpl
    def make_strategy(self, run: Run) -> Strategy:
        """One for each run."""
        chosen = words(run.args)
        if any(word in FULLY for word in chosen):
            from drivetrain_plugins.strategy.fairscale.fully_sharded import FullyShardedStrategy

            return FullyShardedStrategy(run, self.options, chosen)
        from drivetrain_plugins.strategy.fairscale.sharded import ShardedStrategy

        return ShardedStrategy(run, self.options)
