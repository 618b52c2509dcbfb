"""Which parameters are decayed, and which have options of their own."""

from __future__ import annotations

import fnmatch
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from drivetrain.errors import ConfigurationError, did_you_mean, nearest
from drivetrain.slots import Group, Model

# Groups carry these besides the optimizer's own options.
_REGEX = "re:"


def normalisation_layers() -> tuple[type[torch.nn.Module], ...]:
    """Types of layers whose weights are not decayed.

    torch's LayerNorm, and the layers that models of transformers have put down in that library's register
    (T5's and Llama's, for instance). The register is read only where the library is loaded already: a model
    of another origin cannot be in it.
    """
    module = sys.modules.get("transformers.pytorch_utils")
    registered = getattr(module, "ALL_LAYERNORM_LAYERS", ())
    return (torch.nn.LayerNorm, *(layer for layer in registered if layer is not torch.nn.LayerNorm))


def get_decay_parameter_names(model: Model) -> list[str]:
    """Names of the parameters that weight decay applies to, in the model's order.

    Left out are those inside a LayerNorm, and those with "bias" anywhere in their name.
    """
    spared: set[str] = set()
    layers = normalisation_layers()
    for name, module in model.named_modules(remove_duplicate=False):
        # A model that is nothing but a LayerNorm is decayed: only what is inside another module is spared.
        if name and isinstance(module, layers):
            spared.update(f"{name}.{inner}" for inner, _ in module.named_parameters(remove_duplicate=False))
    return [
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name not in spared and "bias" not in name
    ]


def parameter_groups(
    model: Model,
    weight_decay: float,
    decay_names: Iterable[str] | None = None,
    patterns: Sequence[Mapping[str, Any]] | None = None,
    optimizer_class: Callable[..., Any] | None = None,
) -> list[Group]:
    """The optimizer's parameter groups: decayed, not decayed, then those of each pattern.

    The first two are always there, even if empty, since scripts reach for them by number. Frozen
    parameters are in none; a parameter with two names is in one, under its first name.

    Args:
        weight_decay: of the first group; the second has 0.
        decay_names: names that are decayed; `get_decay_parameter_names(model)` where None.
        patterns: dicts of `match` and options of the optimizer (`lr`, `weight_decay`, ...). `match` is a
            shell pattern over whole names ("encoder.*.weight"), or, after "re:", a regular expression that
            is searched for in the name. The first that matches takes the parameter. Without
            `weight_decay` of its own a pattern decays what would be decayed without it.
        optimizer_class: checks the patterns' options against its arguments.

    Raises:
        ConfigurationError: a pattern that matches nothing, or an option that is unknown.
    """
    decayed = set(get_decay_parameter_names(model) if decay_names is None else decay_names)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    taken, groups = _pattern_groups(model, trainable, decayed, weight_decay, patterns or (), optimizer_class)
    rest = [(name, p) for name, p in trainable.items() if name not in taken]
    return [
        {"params": [p for name, p in rest if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in rest if name not in decayed], "weight_decay": 0.0},
        *groups,
    ]


def _pattern_groups(
    model: Model,
    trainable: Mapping[str, torch.nn.Parameter],
    decayed: set[str],
    weight_decay: float,
    patterns: Sequence[Mapping[str, Any]],
    optimizer_class: Callable[..., Any] | None,
) -> tuple[set[str], list[Group]]:
    taken: set[str] = set()
    groups: list[Group] = []
    problems: list[str] = []
    for index, entry in enumerate(patterns):
        wrong = _entry_problem(index, entry, optimizer_class)
        if wrong:
            problems.append(wrong)
            continue
        match = compile_pattern(entry["match"])
        names = [name for name in trainable if name not in taken and match(name)]
        if not names:
            problems.append(_unmatched(entry["match"], match, model, taken))
            continue
        taken.update(names)
        options = {key: value for key, value in entry.items() if key != "match"}
        if "weight_decay" in options:
            groups.append({"params": [trainable[name] for name in names], **options})
            continue
        for names_of_group, decay in (
            ([name for name in names if name in decayed], weight_decay),
            ([name for name in names if name not in decayed], 0.0),
        ):
            if names_of_group:
                params = [trainable[name] for name in names_of_group]
                groups.append({"params": params, **options, "weight_decay": decay})
    if problems:
        raise ConfigurationError(problems)
    return taken, groups


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches: a shell pattern over the whole name, or a regular expression after "re:"."""
    if pattern.startswith(_REGEX):
        search = re.compile(pattern[len(_REGEX) :]).search
    else:
        search = re.compile(fnmatch.translate(pattern)).match
    return lambda name: search(name) is not None


def _entry_problem(index: int, entry: Any, optimizer_class: Callable[..., Any] | None) -> str | None:
    where = f"param_groups[{index}]"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("match"), str):
        return f'{where} must be a dict with "match", a pattern over parameter names, not {entry!r}.'
    try:
        compile_pattern(entry["match"])
    except re.error as error:
        return f"{where}: 'match' {entry['match']!r} is not a regular expression: {error}."
    known = group_options(optimizer_class)
    unknown = [key for key in entry if key != "match" and known is not None and key not in known]
    if unknown and known is not None:
        name = getattr(optimizer_class, "__name__", "the optimizer")
        return (
            f"{where}: {name} has no option '{unknown[0]}'.{did_you_mean(unknown[0], known)} "
            f"It has: {', '.join(sorted(known))}."
        )
    wrong = [
        key
        for key in ("lr", "weight_decay", "momentum")
        if key in entry and (isinstance(entry[key], (bool, str)) or not _not_negative(entry[key]))
    ]
    if wrong:
        return f"{where}: '{wrong[0]}' must be a number of at least 0, and is {entry[wrong[0]]!r}."
    return None


def _not_negative(value: Any) -> bool:
    """Whether an optimizer may take it as a rate: a number of at least 0, or a tensor that holds one."""
    try:
        return bool(float(value) >= 0)
    except (TypeError, ValueError):
        return False


def group_options(optimizer_class: Callable[..., Any] | None) -> set[str] | None:
    """Options that a group of this optimizer may have; None where its signature does not tell."""
    if optimizer_class is None:
        return None
    try:
        parameters = list(inspect.signature(optimizer_class).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters[1:]}


def _unmatched(pattern: str, match: Callable[[str], bool], model: Model, taken: set[str]) -> str:
    """One sentence on why a pattern has no parameter left, with the cure."""
    names = [name for name, _ in model.named_parameters()]
    found = [name for name in names if match(name)]
    if any(name in taken for name in found):
        return f"param_groups: all that {pattern!r} matches is taken by earlier patterns; put it before them."
    if found:
        return f"param_groups: {pattern!r} matches only frozen parameters, such as '{found[0]}'; remove it."
    plain = pattern.removeprefix(_REGEX)
    inside = [name for name in names if plain.strip("*.^$") and plain.strip("*.^$") in name]
    if inside and not pattern.startswith(_REGEX):
        hint = f" Did you mean '*{plain.strip('*.^$')}*', which matches '{inside[0]}'?"
    elif not pattern.startswith(_REGEX) and _reads_as_regex(plain, names):
        hint = f" Did you mean the regular expression '{_REGEX}{plain}'?"
    else:
        close = nearest(plain, names) or (names[0] if names else "none at all")
        hint = f" The nearest name is '{close}'."
    return f"param_groups: no parameter matches {pattern!r}.{hint}"


def _reads_as_regex(pattern: str, names: Iterable[str]) -> bool:
    try:
        search = re.compile(pattern).search
    except re.error:
        return False
    return any(search(name) for name in names)
