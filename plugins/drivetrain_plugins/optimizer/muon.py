"""torch's Muon for the hidden matrices and AdamW for the rest, as one optimizer.

Muon orthogonalises the momentum of a matrix (Jordan, "Muon: An optimizer for hidden layers in neural
networks", 2024). Embeddings, heads, biases and other shapes are no matrices in that sense and go to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from drivetrain.errors import ConfigurationError
from drivetrain.parameters import compile_pattern, parameter_groups
from drivetrain.plugin import hookimpl
from drivetrain.run import Run
from drivetrain.slots import Group, Model, OptimizerFactory
from drivetrain_plugins.optimizer.adamw_torch import why_not_fused
from drivetrain_plugins.optimizer.base import OptimizerPlugin
from drivetrain_plugins.optimizer.options import MuonOptions

_EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer over groups that each say `use_muon`.

    Both of torch's optimizers work on this object's own groups and state, so that schedulers, checkpoints and
    whoever reads `param_groups` meet one optimizer.

    Args:
        params: parameters, or parameter groups; a group without `use_muon` is Muon's if all its parameters
            are matrices.
        lr: learning rate of both.
        weight_decay: decay of both, decoupled.
        momentum: Muon's momentum.
        nesterov: whether Muon looks ahead.
        ns_steps: Muon's Newton-Schulz iterations.
        adjust_lr_fn: Muon's scaling of the learning rate with a matrix's shape.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        fused: whether AdamW is fused.

    Raises:
        ValueError: a number out of its range, or a parameter in a group of Muon's that is no matrix.
    """

    steps_alone = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        # Both have options of one name (`eps`) and other values for them: each fills in its own groups.
        self._muon_options: dict[str, Any] = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        self._adamw_options: dict[str, Any] = {"betas": betas, "eps": eps, "fused": fused}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            self._complete(group)
        self._link()

    def _complete(self, group: dict[str, Any]) -> None:
        """Fills in a group the options of the optimizer it belongs to."""
        if "use_muon" not in group:
            group["use_muon"] = bool(group["params"]) and all(p.ndim == 2 for p in group["params"])
        options = self._muon_options if group["use_muon"] else self._adamw_options
        given = {key: group.get(key, value) for key, value in options.items()}
        # torch's classes check the options and know their other defaults.
        cls: Callable[..., torch.optim.Optimizer] = (
            torch.optim.Muon if group["use_muon"] else torch.optim.AdamW
        )
        checked = cls([dict(group)], lr=group["lr"], **given)
        group.update({key: value for key, value in checked.param_groups[0].items() if key != "params"})

    def _link(self) -> None:
        """Gives the inner optimizers this object's groups and state."""
        muon = [group for group in self.param_groups if group["use_muon"]]
        adamw = [group for group in self.param_groups if not group["use_muon"]]
        self._inner: list[torch.optim.Optimizer] = []
        if muon:
            self._inner.append(_over(torch.optim.Muon(_stand_in(muon[0])), muon, self.state))
        if adamw:
            self._inner.append(_over(torch.optim.AdamW(_stand_in(adamw[0])), adamw, self.state))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, of Muon's or AdamW's by its `use_muon`."""
        super().add_param_group(param_group)
        if hasattr(self, "_inner"):
            self._complete(self.param_groups[-1])
            self._link()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(
            self, "_muon_options"
        ):  # after load_state_dict, which puts new groups and a new state here
            self._link()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_muon_options", "_adamw_options")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in kept}}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both. Returns what `closure`, called first with gradients on, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._inner:
            optimizer.step()
        return loss


def _stand_in(group: dict[str, Any]) -> list[torch.nn.Parameter]:
    """A parameter that an inner optimizer can be made from before it is given the real groups."""
    like = group["params"][0] if group["params"] else torch.empty(0)
    return [torch.nn.Parameter(torch.empty(0, 0, dtype=like.dtype, device=like.device))]


def _over(optimizer: torch.optim.Optimizer, groups: list[Group], state: Any) -> torch.optim.Optimizer:
    optimizer.param_groups = groups
    optimizer.state = state
    return optimizer


def adamw_names(model: Model, patterns: Sequence[str] = ()) -> set[str]:
    """Names of the parameters that Muon must leave to AdamW.

    Those that are no matrices; embeddings, and what is tied to them; the head: what the model's
    `get_output_embeddings()` says (as in transformers), else its last Linear; and what `patterns` match.

    Raises:
        ConfigurationError: a pattern that matches nothing.
    """
    apart: set[int] = set()
    last: torch.nn.Linear | None = None
    for module in model.modules():
        if isinstance(module, _EMBEDDINGS):
            apart.update(id(p) for p in module.parameters(recurse=False))
        if isinstance(module, torch.nn.Linear):
            last = module
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    head = last if head is None else head
    if head is not None:
        apart.update(id(p) for p in head.parameters())
    named = dict(model.named_parameters())
    names = {name for name, p in named.items() if p.ndim != 2 or id(p) in apart}
    for pattern in patterns:
        match = compile_pattern(pattern)
        found = {name for name in named if match(name)}
        if not found:
            raise ConfigurationError(f"Optimizer 'muon': no parameter matches adamw={pattern!r}.")
        names |= found
    return names


class MuonPlugin(OptimizerPlugin[MuonOptions]):
    """`optim="muon"`."""

    name = "muon"
    default_options = MuonOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """Muon and AdamW in one."""
        return MuonWithAdamW

    def kwargs_of(self, args: Any, options: MuonOptions) -> dict[str, Any]:
        """The learning rate of both, Muon's options and Adam's arguments."""
        return {
            "lr": args.learning_rate,
            "momentum": options.momentum,
            "nesterov": options.nesterov,
            "ns_steps": options.ns_steps,
            "adjust_lr_fn": options.adjust_lr_fn,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
        }

    @hookimpl
    def make_optimizer(self, run: Run) -> OptimizerFactory:
        """The factory; its groups are the documented ones, each split into Muon's part and AdamW's."""
        factory = super().make_optimizer(run)
        patterns = self.options.adamw
        args: Any = run.args
        if why_not_fused(run.model.parameters(), run.device) is None:
            factory.kwargs["fused"] = True

        def groups(model: Model) -> list[Group]:
            found = parameter_groups(model, args.weight_decay, None, args.param_groups, MuonWithAdamW)
            return split_groups(found, model, adamw_names(model, patterns))

        if next(run.model.parameters(), None) is not None:  # the patterns are tried at once
            groups(run.model)
        factory.groups = groups
        return factory


def split_groups(groups: Iterable[Group], model: Model, adamw: set[str]) -> list[Group]:
    """Each group's part for AdamW, then Muon's parts; parts without parameters are left out."""
    ids = {id(p) for name, p in model.named_parameters() if name in adamw}
    groups = list(groups)
    result: list[Group] = []
    for use_muon in (False, True):
        for group in groups:
            params = [p for p in group["params"] if (id(p) not in ids) is use_muon]
            if params:
                result.append({**group, "params": params, "use_muon": use_muon})
    return result
