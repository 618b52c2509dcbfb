"""Mixed precision in bfloat16."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain.slots import PrecisionPolicy
from drivetrain_plugins.precision.base import PlainPrecision, evaluation_dtype


class BF16(PlainPrecision):
    """Autocast to bfloat16 over weights in float32. Its exponents are float32's: no loss scale is needed."""

    name = "bf16"

    def policy_of(self, args: Any) -> PrecisionPolicy:
        """Autocast, and the dtype of evaluation."""
        return PrecisionPolicy(self.name, compute=torch.bfloat16, evaluation=evaluation_dtype(args))
