"""Mixed precision in float16."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from drivetrain.slots import PrecisionPolicy
from drivetrain_plugins.precision.base import PlainPrecision, evaluation_dtype
from drivetrain_plugins.precision.options import LossScaleOptions


class FP16(PlainPrecision):
    """Autocast to float16 over weights in float32; the strategy scales the loss as the policy says."""

    name = "fp16"

    def __init__(self, options: LossScaleOptions | None = None) -> None:
        super().__init__(options or LossScaleOptions())

    def policy_of(self, args: Any) -> PrecisionPolicy:
        """Autocast, the loss scaler's options, and the dtype of evaluation."""
        return PrecisionPolicy(
            self.name,
            compute=torch.float16,
            loss_scale=dataclasses.asdict(self.options),
            evaluation=evaluation_dtype(args),
        )
