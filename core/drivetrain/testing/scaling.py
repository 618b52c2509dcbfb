"""A precision of the contract's own: fp32 with a loss scale, so that scaling is tried where there is no fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import PrecisionPolicy

SPIKE = 1e36
"""What the gradients of one rank are made to be in the first update: any loss scale makes it overflow."""


class Scaled:
    """The precision's plugin, and the precision itself."""

    name = "contract_scaled"
    policy = PrecisionPolicy(
        "contract_scaled",
        loss_scale={"init_scale": 2.0**16, "backoff_factor": 0.5, "growth_interval": 1000},
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


def spiked(loss: torch.Tensor, logits: torch.Tensor, size: float) -> torch.Tensor:
    """The same loss, with gradients that are larger by `size`; of the same graph whatever the size is."""
    return loss + (logits - logits.detach()).sum() * size
