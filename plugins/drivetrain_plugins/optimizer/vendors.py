"""AdamW of libraries that are written for one kind of device: torch_xla, NVIDIA's apex, torch_npu."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import NoOptions


class _OfADevice(OptimizerPlugin[NoOptions]):
    default_options = NoOptions()
    vendor_class: ClassVar[str]
    device: ClassVar[str]

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The library's class."""
        module, _, name = self.vendor_class.partition(":")
        cls: Callable[..., torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
        return cls

    def kwargs_of(self, args: Any, options: NoOptions) -> dict[str, Any]:
        """Adam's arguments."""
        return adam_kwargs(args)

    @hookimpl
    def make_optimizer(self, run: Run) -> OptimizerFactory:
        """The factory.

        Raises:
            ConfigurationError: the run is on another kind of device.
        """
        if run.device.type != self.device:
            raise ConfigurationError(
                f"optim={self.name!r} updates parameters on {self.device.upper()} devices alone, and this run is on "
                f"{run.device.type.upper()}: use optim='adamw_torch_fused'."
            )
        return super().make_optimizer(run)


class AdamWXLA(_OfADevice):
    """`optim="adamw_torch_xla"`: torch_xla's, which asks no device whether gradients overflowed."""

    name, vendor_class, device = "adamw_torch_xla", "torch_xla.amp.syncfree:AdamW", "xla"


class AdamWApex(_OfADevice):
    """`optim="adamw_apex_fused"`."""

    name, vendor_class, device = "adamw_apex_fused", "apex.optimizers:FusedAdam", "cuda"


class AdamWNPU(_OfADevice):
    """`optim="adamw_torch_npu_fused"`."""

    name, vendor_class, device = "adamw_torch_npu_fused", "torch_npu.optim:NpuFusedAdamW", "npu"
