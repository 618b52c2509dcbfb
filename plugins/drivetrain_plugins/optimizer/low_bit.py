"""AdamW of torchao, whose moments are quantised in blocks to 8 or 4 bits (Li et al., 2023, for 4), on any device.

Its update is compiled by torch at the first step, once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchao.optim import AdamW4bit, AdamW8bit

from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import TorchAOOptions

_QUANTISED = "quantised"
"""Key under which a state_dict holds the parts of a quantised moment."""


class _Plain(torch.optim.Optimizer):
    """Gives a state_dict of plain tensors, and takes one; the learning rate may be any number."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of a quantised moment its codes, scales and table."""
        saved = super().state_dict()
        state = {
            key: {name: _parts(value) for name, value in entry.items()}
            for key, entry in saved["state"].items()
        }
        return {**saved, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts quantised moments together again, exactly as they were."""
        quantised: dict[tuple[Any, str], dict[str, Any]] = {}
        state: dict[Any, dict[str, Any]] = {}
        for key, entry in state_dict["state"].items():
            state[key] = {}
            for name, value in entry.items():
                if isinstance(value, dict) and _QUANTISED in value:
                    quantised[key, name] = value[_QUANTISED]  # torch would cast its scales
                else:
                    state[key][name] = value
        super().load_state_dict({**state_dict, "state": state})
        numbered = {
            number: parameter
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True)
            for parameter, number in zip(group["params"], saved["params"], strict=True)
        }
        for (key, name), parts in quantised.items():
            parameter = numbered[key]
            self.state[parameter][name] = _whole(self, parameter, parts)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the rate is a tensor within, so that a new one compiles nothing anew."""
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32)
        return super().step(closure)


def _parts(value: Any) -> Any:
    if not isinstance(value, Tensor) or not hasattr(value, "__tensor_flatten__"):
        return value
    names, about = value.__tensor_flatten__()
    return {_QUANTISED: {**{name: getattr(value, name) for name in names}, "about": list(about)}}


def _whole(optimizer: Any, parameter: Tensor, parts: dict[str, Any]) -> Tensor:
    signed = bool(parts["about"][0])
    kind = type(optimizer._subclass_zeros(parameter, signed, optimizer.block_size))
    tensors = {
        name: value.to(parameter.device, copy=True)
        for name, value in parts.items()
        if isinstance(value, Tensor)
    }
    made: Tensor = kind.__tensor_unflatten__(tensors, parts["about"])
    return made


class PlainAdamW8bit(_Plain, AdamW8bit):  # type: ignore[misc]
    """torchao's AdamW8bit with a plain state_dict."""


class PlainAdamW4bit(_Plain, AdamW4bit):  # type: ignore[misc]
    """torchao's AdamW4bit with a plain state_dict."""


class _TorchAO(OptimizerPlugin[TorchAOOptions]):
    default_options = TorchAOOptions()

    def kwargs_of(self, args: Any, options: TorchAOOptions) -> dict[str, Any]:
        """Adam's arguments, and the options that were changed."""
        kwargs = {**adam_kwargs(args), "bf16_stochastic_round": options.bf16_stochastic_round}
        return kwargs if options.block_size is None else {**kwargs, "block_size": options.block_size}


class AdamWTorch8bit(_TorchAO):
    """`optim="adamw_torch_8bit"`."""

    name = "adamw_torch_8bit"

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """`PlainAdamW8bit`."""
        return PlainAdamW8bit


class AdamWTorch4bit(_TorchAO):
    """`optim="adamw_torch_4bit"`."""

    name = "adamw_torch_4bit"

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """`PlainAdamW4bit`."""
        return PlainAdamW4bit
