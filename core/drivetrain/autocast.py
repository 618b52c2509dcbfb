"""Mixed precision of the forward pass: autocast around the model's own `forward`, and fp32 outputs."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from drivetrain.precision_outputs import to_fp32


def install(
    model: torch.nn.Module, autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], None]:
    """Lets the model's forward run under autocast and give its outputs in fp32.

    The loss is then computed in fp32, whether the model or the script computes it. State-dict keys do not
    change, and a deep copy of the model is as whole as the model.

    Returns:
        A function that puts the model's forward back.
    """
    own = vars(model).get("forward")
    original = own if own is not None else type(model).forward

    @functools.wraps(original)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with autocast():
            outputs = original(*args, **kwargs) if own is not None else original(self, *args, **kwargs)
        return to_fp32(outputs)

    model.forward = types.MethodType(forward, model)

    def undo() -> None:
        if own is not None:
            model.forward = own
        else:
            vars(model).pop("forward", None)

    return undo
