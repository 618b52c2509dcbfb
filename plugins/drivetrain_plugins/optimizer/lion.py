"""Lion of the package pytorch-optimizer: steps by the sign of an average of gradients (Chen et al., 2023).

u <- sign(b1 m + (1 - b1) g)      m <- b2 m + (1 - b2) g      p <- p - lr · decay · p - lr · u
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from drivetrain_plugins.optimizer.base import OptimizerPlugin
from drivetrain_plugins.optimizer.options import NoOptions


class LionPlugin(OptimizerPlugin[NoOptions]):
    """`optim="lion"`."""

    name = "lion"
    default_options = NoOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The package's class."""
        from pytorch_optimizer import Lion

        cls: Callable[..., torch.optim.Optimizer] = Lion
        return cls

    def kwargs_of(self, args: Any, options: NoOptions) -> dict[str, Any]:
        """The learning rate, and Adam's betas as Lion's."""
        return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
