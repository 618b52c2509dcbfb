"""A precision of the contract's own: fp32 with a loss scale, so that scaling is tried where there is no fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import PrecisionPolicy

SCALE = 2.0**127
"""The first loss overflows by it, so that the first update is skipped; the next scale is moderate."""

BACKOFF = 2.0**-117


class Scaled:
    """The precision's plugin, and the precision itself."""

    name = "contract_scaled"
    policy = PrecisionPolicy(
        "contract_scaled",
        loss_scale={"init_scale": SCALE, "backoff_factor": BACKOFF, "growth_interval": 1000},
    )

    @hookimpl
    def make_precision(self) -> Scaled:
        """Itself: it holds nothing."""
        return self

    def setup(self, run: Run) -> None:
        """Nothing to set."""

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Numbers stay as they are."""
        return nullcontext()

    def close(self) -> None:
        """Nothing to put back."""
