"""The bare model back from an engine: whole parameters, and nothing of DeepSpeed's on them."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from drivetrain.slots import Model
from drivetrain_plugins.strategy.deepspeed.pieces import Pieces
from drivetrain_plugins.strategy.deepspeed.weights import gathered, is_spread

_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip
_ON_PARAMETERS = ("ds_", "_ds_", "_z3_", "_zero_optimizer", "_hp_", "_dp_group", "_index_in_param_group")
# What DeepSpeed puts on parameters besides, under names of its own.
_NAMED = frozenset({
    "grad_accum", "param_idx_in_group", "is_external_param", "nvme_swapper", "comm_dtype", "cpu_data",
    "get_full_hp_param", "get_full_hp_grad", "set_full_hp_param", "set_full_hp_grad", "load_hp_checkpoint_state",
    "item", "aligned_size", "all_gather", "all_gather_coalesced", "partition", "reduce_gradients_at_owner",
    "partition_gradients",
    "aggregate_gradients", "wait_all_gather", "padding_size", "partition_numel", "item_override",
    "convert_to_zero_parameters", "use_muon", "autocast_dtype",
})  # fmt: skip
_ON_MODULES = frozenset({
    "_external_params", "all_parameters", "register_external_parameter", "_original_parameters", "pre_bwd_fn",
    "post_bwd_fn", "applied_pre_backward_ref_cnt",
})  # fmt: skip


class Before:
    """What a model had before an engine took it: dtypes, and the names on its parameters and modules.

    Args:
        model: bare; it may have been built in pieces already.

    Attributes:
        untrained: the weights that are not trained, by the identity of their parameters.
        compiled: what torch.compile left in it.
    """

    def __init__(self, model: Model) -> None:
        self.compiled: Any = model._compiled_call_impl
        self._dtypes = {id(p): _dtype(p) for p in model.parameters()}
        # An engine that halves weights makes new tensors. Nothing else keeps the digits of those that are not trained.
        self.untrained = {
            id(p): p.detach() for p in model.parameters() if not p.requires_grad and not is_spread(p)
        }
        self._on_modules = {id(module): set(vars(module)) for module in model.modules()}
        self._on_parameters = {id(p): set() if is_spread(p) else set(vars(p)) for p in model.parameters()}

    def dtype(self, tensor: Tensor) -> torch.dtype:
        """The dtype that a parameter had."""
        return self._dtypes.get(id(tensor), tensor.dtype)

    def added(self, owner: Any) -> list[str]:
        """Names on a parameter or a module that DeepSpeed has put there since."""
        if isinstance(owner, Tensor):
            had = self._on_parameters.get(id(owner), set())
            return [name for name in vars(owner) if name not in had and _of_parameter(name)]
        had = self._on_modules.get(id(owner), set())
        return [
            name
            for name in vars(owner)
            if (name.startswith("ds_") or name in _ON_MODULES) and name not in had
        ]


def _dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of a parameter; of one that was built in pieces and halved, that of the copies that are trained."""
    halved = is_spread(parameter) and parameter.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if halved else parameter.dtype


def _of_parameter(name: str) -> bool:
    return name.startswith(_ON_PARAMETERS) or name in _NAMED


def take_back(engine: Any, model: Model, pieces: Pieces | None, before: Before, together: bool) -> None:
    """Ends an engine and leaves the model as a plain one.

    Args:
        engine: is destroyed.
        model: the bare model.
        pieces: of this process.
        before: what the model had.
        together: whether every process is here; without it nothing is gathered, and a model whose weights are
            cut stays cut.
    """
    model._compiled_call_impl = before.compiled  # which an engine that is compiled sets in it
    spread = any(is_spread(p) for p in model.parameters())
    if spread and not together:
        _end(engine)
        return
    masters = _masters(engine, model, pieces) if together else {}
    if engine.fp16_enabled() or engine.bfloat16_enabled():
        masters.update({key: kept.clone() for key, kept in before.untrained.items()})
    wholes: dict[int, Tensor] = {}
    for parameter in model.parameters():
        dtype = before.dtype(parameter)
        whole = masters.get(id(parameter))
        if whole is None:
            with gathered(parameter):
                whole = parameter.detach().clone()
        wholes[id(parameter)] = whole.to(parameter.device, dtype)
    parameters = list(model.parameters())
    _end(engine)
    for module in model.modules():
        _clean_module(module, before)
    for parameter in parameters:
        parameter.grad = None
        for name in before.added(parameter):
            delattr(parameter, name)
        parameter.data = wholes[id(parameter)]


def _masters(engine: Any, model: Model, pieces: Pieces | None) -> dict[int, Tensor]:
    """The copies in single precision, where the engine halved the weights themselves."""
    if pieces is None or not (engine.fp16_enabled() or engine.bfloat16_enabled()):
        return {}
    from deepspeed.utils import safe_get_full_fp32_param

    trained = [p for p in model.parameters() if pieces.flat_of(p) is not None]
    return {id(p): safe_get_full_fp32_param(p).clone() for p in trained}


def _end(engine: Any) -> None:
    """Destroys an engine once. Collected later it must not reach for parameters that another engine has by then."""
    for handle in ("module_forward_pre_hook", "module_forward_post_hook"):
        found = getattr(engine, handle, None)
        if found is not None:
            found.remove()
    engine.destroy()
    engine.destroy = _nothing
    linear = torch.nn.functional.linear
    if linear.__module__.startswith("deepspeed"):  # zero.Init leaves its own in torch's place
        from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

        torch.nn.functional.linear = InsertPostInitMethodToModuleSubClasses.linear_bk


def _nothing() -> None:
    """In place of `destroy`, which was called."""


def _clean_module(module: torch.nn.Module, before: Before) -> None:
    own = module._parameters
    if type(own) not in (dict, OrderedDict):
        original = vars(module).get("_original_parameters")
        plain = (
            type(original)() if isinstance(original, dict) and type(original) in (dict, OrderedDict) else {}
        )
        plain.update(own.items())
        module._parameters = plain
    for table in _HOOKS:
        hooks = vars(module).get(table)
        if isinstance(hooks, dict):
            for key in [key for key, hook in hooks.items() if _is_vendors(hook)]:
                del hooks[key]
    for name in before.added(module):
        delattr(module, name)


def _is_vendors(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("deepspeed.")
