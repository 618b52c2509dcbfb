"""Which modules are sharded as units of their own. Everything else belongs to the whole model's unit."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import nn

from drivetrain.errors import ConfigurationError, did_you_mean
from drivetrain_plugins.strategy.fsdp.options import Settings
from drivetrain_plugins.transform.gradient_checkpointing import repeated_blocks

logger = logging.getLogger("drivetrain")


def find_units(model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
    """The modules to wrap by themselves, by name, in the model's order; inner ones among them too.

    Raises:
        ConfigurationError: a class is named that the model has not, or nothing has the size asked for.
    """
    if settings.transformer_layer_cls_to_wrap:
        found = _by_class(model, settings.transformer_layer_cls_to_wrap)
    elif settings.min_num_params:
        found = _by_size(model, settings.min_num_params)
    elif settings.auto_wrap:
        found = _by_itself(model)
    else:
        found = {}
    units = {name: unit for name, unit in found.items() if unit is not model and _has_parameters(unit)}
    return _without_ties(model, units)


def inner_first(units: dict[str, nn.Module]) -> list[tuple[str, nn.Module]]:
    """The units in an order in which each comes after those within it."""
    return sorted(units.items(), key=lambda item: -item[0].count("."))


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _by_class(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    classes = {type(module).__name__ for module in model.modules()}
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ConfigurationError(
            f"fsdp_config's transformer_layer_cls_to_wrap names {unknown[0]!r}, which {type(model).__name__} has not."
            f"{did_you_mean(unknown[0], classes)} It has: {', '.join(sorted(classes))}."
        )
    wanted = set(names)
    return {name: module for name, module in model.named_modules() if type(module).__name__ in wanted}


def _by_size(model: nn.Module, least: int) -> dict[str, nn.Module]:
    """Modules with at least so many parameters, those of wrapped parts left out; lists are looked into."""
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> int:
        own = sum(p.numel() for p in module.parameters(recurse=False))
        own += sum(visit(f"{name}.{key}" if name else key, child) for key, child in module.named_children())
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if own < least or is_list or module is model:
            return own
        found[name] = module
        return 0

    visit("", model)
    in_order = {name: found[name] for name, _ in model.named_modules() if name in found}
    if not in_order:
        logger.info(
            "No part of the model has min_num_params=%d parameters: it is sharded as one unit.", least
        )
    return in_order


def _by_itself(model: nn.Module) -> dict[str, nn.Module]:
    """The classes that the model says must not be split (as transformers' do), else its repeated blocks."""
    classes = {type(module).__name__ for module in model.modules()}
    told = [name for name in getattr(model, "_no_split_modules", None) or () if name in classes]
    if told:
        return _by_class(model, told)
    found = repeated_blocks(model)
    if not found:
        logger.warning(
            "fsdp='auto_wrap' finds no repeated blocks in %s: it is sharded as one unit; name classes in "
            "fsdp_config's transformer_layer_cls_to_wrap, or a size in min_num_params.",
            type(model).__name__,
        )
    return found


def _without_ties(model: nn.Module, units: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The units that share no parameter with what lies outside of them: a shared one has one place."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    kept: dict[str, nn.Module] = {}
    for name, unit in units.items():
        inside = {id(module) for module in unit.modules()}
        if all(owners[id(p)] <= inside for p in unit.parameters()):
            kept[name] = unit
        else:
            logger.info("%s shares a parameter with another part: it is sharded with the whole model.", name)
    return kept
