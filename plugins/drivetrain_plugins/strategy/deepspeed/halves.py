"""The engine's own half precision: weights are halved, so what the model is given must be, too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from drivetrain.precision_outputs import to_fp32

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def serve(engine: Any, dtype: torch.dtype, labels: Collection[str]) -> None:
    """Lets the engine take single precision and give it, as models under autocast do.

    Args:
        engine: whose weights are halved.
        dtype: of the weights.
        labels: names of inputs that stay as they are.
    """

    def before(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        kept = {key: value if key in labels else _half(value, dtype) for key, value in named.items()}
        return tuple(_half(value, dtype) for value in given), kept

    def after(module: Any, given: Any, outputs: Any) -> Any:
        return to_fp32(outputs)

    engine.register_forward_pre_hook(before, with_kwargs=True)
    engine.register_forward_hook(after)


def _half(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value
