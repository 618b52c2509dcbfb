"""Intel's extension for PyTorch: it makes the update faster in training, and the model in an evaluation by itself."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from drivetrain.plugin import hookimpl
from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class IPEXOptions:
    """Options of `ipex`, as `plugins={"ipex": {"level": "O0"}}`.

    Attributes:
        level: O0 changes nothing, O1 is the extension's usual set.
        auto_kernel_selection: let the extension choose among its kernels, for more memory.
    """

    level: str = "O1"
    auto_kernel_selection: bool = False

    def __post_init__(self) -> None:
        if self.level not in ("O0", "O1"):
            raise ValueError(f"option 'level' must be 'O0' or 'O1', and is {self.level!r}.")


def problems(args: Any) -> list[str]:
    """Why the extension cannot be used here, one sentence each; empty where it can."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import Version

    here = Version(torch.__version__)
    try:
        found = Version(version("intel-extension-for-pytorch"))
    except PackageNotFoundError:
        return [
            "use_ipex=True needs intel-extension-for-pytorch, which is not installed. Its last version, 2.8, needs "
            f"torch 2.8, and this is {here.base_version}: leave use_ipex out, or use torch_compile=True."
        ]
    if found.release[:2] != here.release[:2]:
        return [
            f"use_ipex=True finds intel-extension-for-pytorch {found}, which is for torch {found.major}.{found.minor}, "
            f"and this is torch {here.base_version}: leave use_ipex out, or install the two of one version."
        ]
    if not args.use_cpu and torch.cuda.is_available():
        return ["use_ipex=True is for Intel's CPUs, and this run is on a CUDA device: set use_cpu=True."]
    return []


class IPEX:
    """Lets Intel's extension optimise model and optimizer.

    In training the weights stay float32 and what they are, whatever the extension would make of them: checkpoints
    hold them, and `bf16` is autocast over them, as under every strategy. An evaluation by itself goes through
    an optimised copy of the model.
    """

    def __init__(self, options: IPEXOptions | None = None) -> None:
        self.options = options or IPEXOptions()

    @hookimpl
    def transform_model(self, run: Run, model: nn.Module) -> nn.Module | None:
        """Changes model and optimizer in place for a training; for an evaluation returns a copy."""
        if run.is_training:
            self.optimized(run.model, run.optimizer, torch.float32, self.options)
            return None
        policy = run.precision.policy
        half = policy.evaluation or policy.compute
        return self.optimized(model, None, half or torch.float32, self.options)[0]

    @staticmethod
    def optimized(
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        dtype: torch.dtype,
        options: IPEXOptions | None = None,
    ) -> tuple[nn.Module, torch.optim.Optimizer | None]:
        """The model and its optimizer as the extension makes them.

        Args:
            model: changed in place where there is an optimizer; else a copy is, in evaluation mode.
            optimizer: of the model, or None for an evaluation.
            dtype: of the copy's weights. In training weights keep their type.
            options: those of the plugin.
        """
        options = options or IPEXOptions()
        common: dict[str, Any] = {
            "level": options.level,
            "auto_kernel_selection": options.auto_kernel_selection or None,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about the operators that the extension replaces
            import intel_extension_for_pytorch as extension

            if optimizer is None:
                twin = copy.deepcopy(model).eval()
                # Folding fails where a model cannot be traced symbolically, as most of transformers cannot.
                folding = {"conv_bn_folding": False, "linear_bn_folding": False}
                return extension.optimize(twin, dtype=dtype, inplace=True, **folding, **common), None
            was_training = model.training
            model.train()
            # Weights in the extension's own layout or type would be other parameters than those that the strategy
            # holds and a checkpoint knows; so would the LSTM that it puts in the place of torch's.
            kept = {"weights_prepack": False, "split_master_weight_for_bf16": False, "optimize_lstm": False}
            extension.optimize(
                model, dtype=torch.float32, optimizer=optimizer, inplace=True, **kept, **common
            )
            model.train(was_training)
            return model, optimizer
