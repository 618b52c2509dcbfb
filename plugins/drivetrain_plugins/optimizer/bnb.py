"""AdamW and Lion of bitsandbytes, with state in 8 or 32 bits, paged or not.

State of 8 bits is quantised in blocks of 256 elements (Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
2022). Paged state lies in memory that the driver moves between device and host; on a CPU it is in the host's already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import OptimizerFactory
from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import BitsAndBytesOptions

logger = logging.getLogger("drivetrain")

# The kernels that an update calls; each version of bitsandbytes has them for some kinds of device.
_KERNELS = {8: "optimizer_update_8bit_blockwise", 32: "optimizer_update_32bit"}
_KEYS = {"cpu": "CPU", "cuda": "CUDA", "xpu": "XPU", "mps": "MPS", "hpu": "HPU"}


class _BitsAndBytes(OptimizerPlugin[BitsAndBytesOptions]):
    default_options = BitsAndBytesOptions()
    vendor_class: ClassVar[str]
    bits: ClassVar[int]
    paged: ClassVar[bool] = False

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """The class of bitsandbytes."""
        import bitsandbytes.optim

        cls: Callable[..., torch.optim.Optimizer] = getattr(bitsandbytes.optim, self.vendor_class)
        return cls

    def kwargs_of(self, args: Any, options: BitsAndBytesOptions) -> dict[str, Any]:
        """Adam's arguments as far as the optimizer has them, how many bits, and the options that were changed."""
        kwargs: dict[str, Any] = {**adam_kwargs(args), "optim_bits": self.bits, "is_paged": self.paged}
        if self.vendor_class == "Lion":
            del kwargs["eps"]
        if options.min_8bit_size != self.default_options.min_8bit_size:
            kwargs["min_8bit_size"] = options.min_8bit_size
        return kwargs

    @hookimpl
    def make_optimizer(self, run: Run) -> OptimizerFactory:
        """The factory.

        Raises:
            ConfigurationError: bitsandbytes has no kernel for the run's device.
        """
        factory = super().make_optimizer(run)
        kind = run.device.type
        if not _has_kernel(kind, self.bits):
            from bitsandbytes import __version__

            raise ConfigurationError(
                f"optim={self.name!r}: bitsandbytes {__version__} has no such optimizer for the device {kind!r}. Run: "
                "pip install --upgrade bitsandbytes, or use optim='adamw_torch'."
            )
        if self.paged and kind == "cpu":
            # The same numbers; bitsandbytes itself would warn at the first update.
            factory.kwargs["is_paged"] = False
            if run.is_training and run.is_main_process:
                logger.warning(
                    "optim=%r pages nothing on a CPU: the state is in host memory already.", self.name
                )
        return factory


def _has_kernel(device: str, bits: int) -> bool:
    """Whether the installed bitsandbytes can update parameters on such a device."""
    import bitsandbytes.optim  # noqa: F401  # registers its kernels

    name = f"bitsandbytes::{_KERNELS[bits]}"
    try:
        if device in _KEYS and torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEYS[device]):
            return True
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd"))
    except RuntimeError:  # a version that had no operators of torch, and CUDA alone
        return device == "cuda"


class AdamW8bit(_BitsAndBytes):
    """`optim="adamw_bnb_8bit"`."""

    name, vendor_class, bits = "adamw_bnb_8bit", "AdamW", 8


class AdamW8bitAlias(AdamW8bit):
    """`optim="adamw_8bit"`: the same by another name."""

    name = "adamw_8bit"


class PagedAdamW32bit(_BitsAndBytes):
    """`optim="paged_adamw_32bit"`."""

    name, vendor_class, bits, paged = "paged_adamw_32bit", "AdamW", 32, True


class PagedAdamW8bit(_BitsAndBytes):
    """`optim="paged_adamw_8bit"`."""

    name, vendor_class, bits, paged = "paged_adamw_8bit", "AdamW", 8, True


class Lion32bit(_BitsAndBytes):
    """`optim="lion_32bit"`."""

    name, vendor_class, bits = "lion_32bit", "Lion", 32


class Lion8bit(_BitsAndBytes):
    """`optim="lion_8bit"`."""

    name, vendor_class, bits = "lion_8bit", "Lion", 8


class PagedLion32bit(_BitsAndBytes):
    """`optim="paged_lion_32bit"`."""

    name, vendor_class, bits, paged = "paged_lion_32bit", "Lion", 32, True


class PagedLion8bit(_BitsAndBytes):
    """`optim="paged_lion_8bit"`."""

    name, vendor_class, bits, paged = "paged_lion_8bit", "Lion", 8, True
