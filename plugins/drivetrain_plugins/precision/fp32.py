"""Numbers as the model holds them."""

from __future__ import annotations

from drivetrain_plugins.precision.base import PlainPrecision


class FP32(PlainPrecision):
    """No autocast: a model in float32 is trained in float32, one in bfloat16 in bfloat16."""

    name = "fp32"
