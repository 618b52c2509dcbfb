"""The sum of losses since the last row of the log, kept on the device and read only when a row is due."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class LossWindow:
    """Losses of micro-batches, added up without waiting for the device.

    Args:
        device: where the sum is kept.
        filter_nan_inf: count a NaN or infinite loss as the window's mean (`logging_nan_inf_filter`).

    Attributes:
        total: sum of all losses that were read, over the run.
        last_logged: the update at which the window was last read.
    """

    def __init__(self, device: torch.device, filter_nan_inf: bool) -> None:
        self.sum = torch.tensor(0.0, device=device)
        self.filter = filter_nan_inf
        self.on_cpu = device.type == "cpu"
        self.total = 0.0
        self.last_logged = 0

    def add(self, loss: Tensor, step: int) -> None:
        """Adds the loss of a micro-batch, already divided by the accumulation.

        Args:
            loss: a scalar tensor.
            step: updates done.
        """
        if not self.filter:
            self.sum += loss
        elif self.on_cpu:
            # On the host nothing is waited for, and looking at the number is cheaper than a masked sum.
            self.sum += loss if math.isfinite(loss) else self.sum / (1 + step - self.last_logged)
        else:
            self.sum += torch.where(torch.isfinite(loss), loss, self.sum / (1 + step - self.last_logged))

    def read(self, strategy: Any) -> float:
        """The sum, averaged over ranks; the window begins anew. A collective."""
        value = float(strategy.collect(self.sum.reshape(1)).mean().item())
        # Not set to 0: a window with a NaN shows in all rows after it, as in 4.34.0.
        self.sum -= self.sum
        self.total += value
        return value

    def state(self) -> dict[str, Any]:
        """For a checkpoint: this rank's sum, on the device; the total, and the update last logged."""
        return {"sum": self.sum.reshape(1), "total": self.total, "last_logged": self.last_logged}

    def restore(self, state: dict[str, Any], rank: int = 0, world_size: int = 1) -> None:
        """What `state` gave, with the sums of all ranks; with another number of ranks each gets their mean."""
        sums = torch.as_tensor(state["sum"]).reshape(-1)
        self.sum.copy_(sums[rank] if len(sums) == world_size else sums.mean())
        self.total = float(state["total"])
        self.last_logged = int(state["last_logged"])
