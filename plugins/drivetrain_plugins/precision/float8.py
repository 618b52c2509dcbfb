"""Matrix products of linear layers in float8, by torchao; everything else as under `bf16`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from drivetrain.errors import ConfigurationError
from drivetrain.slots import PrecisionPolicy
from drivetrain_plugins.precision.base import PlainPrecision, evaluation_dtype

logger = logging.getLogger("drivetrain")

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
# The matrix units take rows and columns in blocks of this many.
_BLOCK = 16


@dataclass(frozen=True)
class Float8Options:
    """Options of the precision `float8`, as `plugins={"float8": {"skip": ["head"]}}`.

    Attributes:
        recipe: torchao's: `tensorwise` (one scale for a tensor, the fastest), `rowwise` (one for each row), or
            `rowwise_with_gw_hp` (the same, with the weights' gradients in the higher precision).
        skip: patterns (`*.head`) of names of linear layers that stay as they are.
        emulate: compute the same numbers without float8 units, slowly: for tests.
    """

    recipe: str = "tensorwise"
    skip: tuple[str, ...] | list[str] = ()
    emulate: bool = False

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"option 'recipe' must be one of {', '.join(RECIPES)}, and is {self.recipe!r}.")
        if isinstance(self.skip, str):
            raise ValueError("option 'skip' must be a list of patterns, not one string.")


class Float8(PlainPrecision):
    """Weights stay float32, and so do checkpoints: layers are converted for a run, and put back after it."""

    name = "float8"

    def __init__(self, options: Float8Options | None = None) -> None:
        super().__init__(options or Float8Options())

    def policy_of(self, args: Any) -> PrecisionPolicy:
        """Autocast to bfloat16 on CUDA, for which torchao's layers know it; on a CPU they are emulated in float32."""
        cuda = torch.cuda.is_available() and not args.use_cpu
        return PrecisionPolicy(
            self.name, compute=torch.bfloat16 if cuda else None, evaluation=evaluation_dtype(args)
        )

    def convert(self, model: nn.Module) -> Callable[[], None]:
        """Puts torchao's layers in the place of the linear ones, over the same parameters.

        Returns:
            A function that puts the layers back.

        Raises:
            ConfigurationError: there is no layer to convert.
        """
        # torchao speaks of its extensions that this machine cannot load, and of its own use of torch.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        options: Float8Options = self.options
        config = replace(Float8LinearConfig.from_recipe_name(options.recipe), emulate=options.emulate)
        places = {
            name: (parent, child)
            for prefix, parent in model.named_modules()
            for child, module in parent.named_children()
            if self._wanted(name := f"{prefix}.{child}" if prefix else child, module)
        }
        if not places:
            raise ConfigurationError(
                f"precision='float8' finds no linear layer in {type(model).__name__} whose sizes are multiples of "
                f"{_BLOCK}, beside those that its option 'skip' leaves out: use bf16=True."
            )
        before = {name: parent._modules[child] for name, (parent, child) in places.items()}
        convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in places)
        for name, (parent, child) in places.items():
            _take_over(before[name], parent._modules[child])
        logger.info("float8 (%s): %d linear layers of %s.", options.recipe, len(places), type(model).__name__)

        def undo() -> None:
            for name, (parent, child) in places.items():
                linear, converted = before[name], parent._modules[child]
                assert linear is not None
                assert converted is not None
                # A strategy may have put other parameters in the place of those of the beginning.
                linear._parameters = converted._parameters
                linear.training = converted.training
                parent._modules[child] = linear

        return undo

    def _wanted(self, name: str, module: nn.Module) -> bool:
        if type(module) is not nn.Linear or any(fnmatchcase(name, pattern) for pattern in self.options.skip):
            return False
        return module.in_features % _BLOCK == 0 and module.out_features % _BLOCK == 0


def _take_over(linear: nn.Module | None, converted: nn.Module | None) -> None:
    """Hooks stay where they were hung, and a layer in evaluation mode in it."""
    assert linear is not None
    assert converted is not None
    converted.training = linear.training
    for key, value in vars(linear).items():
        if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            vars(converted)[key] = value
