"""AdamW on gradients of low rank, of the package pytorch-optimizer (Zhao et al., "GaLore", 2024).

The gradient of a matrix is projected to `rank` rows or columns, which the moments are kept of, and the update is
projected back; the projection is made anew every `update_proj_gap` updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import GaLore
from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

from drivetrain.errors import ConfigurationError
from drivetrain.parameters import compile_pattern, parameter_groups
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import Group, Model, OptimizerFactory
from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import GaLoreOptions

_KEPT = ("ortho_matrix", "last_svd_step")
_OF_PROJECTOR = ("rank", "update_proj_gap", "scale", "projection_type")


class GaLoreAdamW(GaLore):  # type: ignore[misc]
    """The package's GaLore, whose state_dict holds tensors and numbers in the place of objects."""

    def step(self, closure: Any = None) -> Any:
        """One step; new projections are laid out in memory as those of a checkpoint are, or products would differ."""
        loss = super().step(closure)
        for entry in self.state.values():
            if (projector := entry.get("projector")) is not None:
                projector.ortho_matrix = _contiguous(projector.ortho_matrix)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state; of a projector what it keeps."""
        saved: dict[str, Any] = super().state_dict()
        state = {
            key: {
                name: {kept: getattr(value, kept) for kept in _KEPT}
                if isinstance(value, GaLoreProjector)
                else value
                for name, value in entry.items()
            }
            for key, entry in saved["state"].items()
        }
        return {**saved, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the projectors again, with what they kept and the options of their groups."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for parameter in group["params"]:
                entry = self.state.get(parameter, {})
                if isinstance(kept := entry.get("projector"), dict):
                    projector = GaLoreProjector(**{key: group[key] for key in _OF_PROJECTOR})
                    for key in _KEPT:
                        setattr(projector, key, kept[key])
                    entry["projector"] = projector


def _contiguous(matrix: Any) -> Any:
    if isinstance(matrix, tuple):
        return tuple(part.contiguous() for part in matrix)
    return matrix.contiguous()


def target_names(model: Model, patterns: tuple[str, ...]) -> set[str]:
    """Names of the matrices whose gradients are projected.

    Args:
        model: the bare model.
        patterns: over names, as in `param_groups`; "all-linear" stands for the weights of all Linear layers but the
            head (what `get_output_embeddings()` says, else the last).

    Raises:
        ConfigurationError: there are no patterns, or one matches no matrix.
    """
    if not patterns:
        raise ConfigurationError(
            "optim='galore_adamw' needs target_modules, patterns of the matrices whose gradients are projected: set "
            "optim_args='target_modules=all-linear', for one."
        )
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    found: set[str] = set()
    for pattern in patterns:
        if pattern.replace("_", "-") == "all-linear":
            matched = _linear_weights(model) & matrices
        else:
            match = compile_pattern(pattern)
            matched = {name for name in matrices if match(name)}
        if not matched:
            raise ConfigurationError(
                f"Optimizer 'galore_adamw': no matrix matches target_modules={pattern!r}; names are such as "
                f"{next(iter(sorted(matrices)), 'none')!r}."
            )
        found |= matched
    return found


def _linear_weights(model: Model) -> set[str]:
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    get_head = getattr(model, "get_output_embeddings", None)
    head = (get_head() if callable(get_head) else None) or (linear[-1][1] if linear else None)
    return {f"{name}.weight" if name else "weight" for name, module in linear if module is not head}


class GaLorePlugin(OptimizerPlugin[GaLoreOptions]):
    """`optim="galore_adamw"`."""

    name = "galore_adamw"
    default_options = GaLoreOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """`GaLoreAdamW`."""
        cls: Callable[..., torch.optim.Optimizer] = GaLoreAdamW
        return cls

    def kwargs_of(self, args: Any, options: GaLoreOptions) -> dict[str, Any]:
        """Adam's arguments; the other options are those of the groups of projected matrices."""
        return adam_kwargs(args)

    @hookimpl
    def make_optimizer(self, run: Run) -> OptimizerFactory:
        """The factory; its groups are the documented ones, each split into what is projected and what is not."""
        from drivetrain_plugins.optimizer.options import read_optim_args

        factory = super().make_optimizer(run)
        args: Any = run.args
        options = read_optim_args(self.options, args, self.name)
        projection = {
            "rank": options.rank,
            "update_proj_gap": options.update_proj_gap,
            "scale": options.scale,
            "projection_type": options.proj_type,
        }

        def groups(model: Model) -> list[Group]:
            ids = {id(model.get_parameter(name)) for name in target_names(model, options.target_modules)}
            made: list[Group] = []
            for group in parameter_groups(model, args.weight_decay, None, args.param_groups, GaLore):
                for projected in (False, True):
                    params = [p for p in group["params"] if (id(p) in ids) is projected]
                    if params or not projected:
                        made.append({**group, "params": params, **(projection if projected else {})})
            return made

        if next(run.model.parameters(), None) is not None:  # the patterns are tried at once
            groups(run.model)
        factory.groups = groups
        return factory
