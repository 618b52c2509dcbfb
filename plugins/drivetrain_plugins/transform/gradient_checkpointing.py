"""Activation checkpointing: by the model's own switch, else over its repeated blocks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from drivetrain.errors import ConfigurationError
from drivetrain.plugin import hookimpl
from drivetrain.run import Run

logger = logging.getLogger("drivetrain")


@dataclass(frozen=True)
class GradientCheckpointingOptions:
    """Options of `gradient_checkpointing`.

    Attributes:
        blocks: patterns (`encoder.layers.*`) of names of the modules whose activations are not kept. Empty:
            the model's own switch where it has one, else the repeated blocks that are found.
        use_reentrant: torch's older form, which needs an input that has a gradient. For models that know
            their own switch; the blocks found here always have the newer one.
    """

    blocks: tuple[str, ...] | list[str] = ()
    use_reentrant: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.blocks, str):
            raise ValueError("blocks must be a list of patterns, not one string.")
        if self.blocks and self.use_reentrant:
            raise ValueError(
                "use_reentrant is for a model's own switch, which blocks leave aside: give one of them."
            )


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block that keeps its inputs alone where a gradient is to come."""
    if self.training and is_grad_enabled():
        return checkpoint(type(self).forward, self, *args, use_reentrant=False, **kwargs)
    return type(self).forward(self, *args, **kwargs)


def wrap(block: nn.Module) -> Callable[[], object]:
    """Checkpoints a block, and returns what undoes it.

    The forward is set on the instance as a bound method, and not as a closure: a deep copy of the model binds
    it to the copy's block, and torch.compile traces through it.

    Raises:
        ConfigurationError: something else has replaced this block's forward already.
    """
    if "forward" in vars(block):
        raise ConfigurationError(
            f"gradient_checkpointing=True cannot wrap {type(block).__name__}, whose forward was replaced on the "
            "instance: name other blocks, or leave gradient_checkpointing out."
        )
    block.forward = MethodType(_forward, block)
    return lambda: vars(block).pop("forward", None)


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that a model repeats, by name: the members of each outermost list of two or more modules
    of one class that have modules of their own. Blocks within blocks are left to their block."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name == outer or name.startswith(f"{outer}.") for outer in found):
            continue
        if not isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            continue
        members = dict(module.named_children())
        kinds = {type(member) for member in members.values()}
        if len(members) > 1 and len(kinds) == 1 and all(_is_block(member) for member in members.values()):
            found.update({f"{name}.{key}" if name else key: member for key, member in members.items()})
    return found


def _is_block(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


class GradientCheckpointing:
    """Turns checkpointing on for a training, and off at its end. State-dict keys stay as they are."""

    def __init__(self, options: GradientCheckpointingOptions | None = None) -> None:
        self.options = options or GradientCheckpointingOptions()
        self._undo: list[Callable[[], object]] = []

    @hookimpl
    def transform_model(self, run: Run, model: nn.Module) -> None:
        """Changes `model` in place.

        Raises:
            ConfigurationError: the model has no switch and no repeated blocks, or no module bears a name
                that `blocks` asks for.
        """
        self._close()
        if not run.is_training:
            return
        if not self.options.blocks and self._by_switch(model):
            return
        if self.options.use_reentrant:
            raise ConfigurationError(
                f"use_reentrant of gradient_checkpointing is for a model's own switch, and {type(model).__name__} has "
                "none: leave it out."
            )
        blocks = self._by_name(model) if self.options.blocks else repeated_blocks(model)
        if not blocks:
            raise ConfigurationError(
                f"gradient_checkpointing=True finds no switch or repeated blocks in {type(model).__name__}: "
                "name its blocks in plugins={'gradient_checkpointing': {'blocks': [...]}}."
            )
        for block in blocks.values():
            self._undo.append(wrap(block))
        logger.info("Gradient checkpointing over %d blocks: %s", len(blocks), ", ".join(blocks))

    def _by_switch(self, model: nn.Module) -> bool:
        """Whether the model could turn it on itself."""
        # The first is what transformers calls it from 5.x on, and warns of the second.
        word = next(
            (w for w in ("activation", "gradient") if hasattr(model, f"{w}_checkpointing_enable")), None
        )
        if word is None:
            return False
        enable = getattr(model, f"{word}_checkpointing_enable")
        options = f"{word}_checkpointing_kwargs"
        try:
            if options in inspect.signature(enable).parameters:
                enable(**{options: {"use_reentrant": self.options.use_reentrant}})
            else:
                enable()
        except ValueError as error:  # transformers' models that have the switch and do not support it
            logger.info("%s has no gradient checkpointing of its own (%s).", type(model).__name__, error)
            return False
        disable = getattr(model, f"{word}_checkpointing_disable", None)
        if callable(disable):
            self._undo.append(disable)
        config = getattr(model, "config", None)
        if getattr(config, "use_cache", False):
            # A cache of keys and values is of no use in training, and defeats the recomputation.
            config.use_cache = False  # type: ignore[union-attr]
            self._undo.append(lambda: setattr(config, "use_cache", True))
        return True

    def _by_name(self, model: nn.Module) -> dict[str, nn.Module]:
        modules = dict(model.named_modules())
        found: dict[str, nn.Module] = {}
        for pattern in self.options.blocks:
            # A pattern's star takes no dot, so that `layers.*` are the layers and not all within them.
            matching = {
                name: module
                for name, module in modules.items()
                if name and name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)
            }
            if not matching:
                there = ", ".join(repeated_blocks(model)) or "none"
                raise ConfigurationError(
                    f"No module of {type(model).__name__} is named {pattern!r}, as the blocks of "
                    f"gradient_checkpointing ask. Its repeated blocks: {there}."
                )
            found.update(matching)
        return found

    def _close(self) -> None:
        while self._undo:
            self._undo.pop()()

    @hookimpl
    def on_train_end(self, run: Run) -> None:
        """Turns it off."""
        self._close()

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Turns it off."""
        self._close()
