"""The second generation: `fully_shard`, which shards a model in place."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from drivetrain_plugins.strategy.fsdp.blocks import inner_first
from drivetrain_plugins.strategy.fsdp.engine import Bare, Plan
from drivetrain_plugins.strategy.fsdp.shards import Piece, agree_on_spans, as_holder, like_holder, part

# The module, whose name in its package is that of a function of it.
_contract: Any = importlib.import_module("torch.distributed._composable.contract")
_NOTHING: AbstractContextManager[None] = nullcontext()


class Second:
    """`fully_shard` on each unit and on the model: parameters become DTensors, split by rows."""

    def __init__(self) -> None:
        self.pieces: dict[str, Piece] = {}
        self._syncs = True

    def wrap(self, bare: Bare, plan: Plan) -> None:
        """Shards the model in place."""
        self.bare, self.plan, self.wrapped = bare, plan, bare.model
        model, settings = bare.model, plan.settings
        scalars = set(bare.scalars(plan.device))
        names = {id(parameter): name for name, parameter in bare.parameters.items()}
        common: dict[str, Any] = {
            "mesh": plan.mesh,
            "mp_policy": mixed_precision(settings.mixed_precision),
            "offload_policy": CPUOffloadPolicy(pin_memory=plan.options.pin_memory)
            if settings.offload
            else OffloadPolicy(),
        }
        if scalars:
            common["ignored_params"] = scalars  # which cannot be split; the strategy keeps them alike
        reshard = settings.reshard_after_forward
        if reshard is None and settings.mode != "full_shard" and settings.mode != "hybrid_shard":
            reshard = False
        if reshard is not None:
            common["reshard_after_forward"] = reshard
        for _, unit in [*inner_first(plan.units), ("", model)]:
            own = [name for p in unit.parameters() if (name := names.get(id(p))) is not None]
            fully_shard(unit, **common)
            for name in own:
                if bare.parameters[name].dim():
                    bare.empty(name)
        self._materialise()
        self._set_up(model)
        self._note_pieces()

    def _materialise(self) -> None:
        """Memory for this rank's part of parameters on the meta device."""
        device = torch.device("cpu") if self.plan.settings.offload else self.plan.device
        for record in self._sharded():
            old = record.sharded_param
            if old.device.type == "meta":
                inner = torch.zeros(old.to_local().shape, dtype=old.dtype, device=device)
                new = nn.Parameter(as_holder(old, inner), requires_grad=old.requires_grad)
                record._setattr_on_modules(new)
                record.reset_sharded_param()

    def _set_up(self, model: nn.Module) -> None:
        plan = self.plan
        assert isinstance(model, FSDPModule)
        if plan.options.unused_parameters:
            model.set_reduce_scatter_unused_params(True)
        if plan.settings.forward_prefetch:
            units: list[Any] = list(plan.units.values())
            for unit, following in itertools.pairwise(units):
                unit.set_modules_to_forward_prefetch([following])

    def _note_pieces(self) -> None:
        """Where each rank's rows lie."""
        group = self.plan.shard_group
        holders: dict[str, Tensor] = {}
        spans: dict[str, tuple[int, int]] = {}
        for name, ((module, attribute), *_) in self.bare.places.items():
            holder = module._parameters[attribute]
            assert holder is not None
            holders[name] = holder
            if isinstance(holder, DTensor):
                spans[name] = _rows(holder, self.plan)
        agreed = agree_on_spans(spans, group)
        for name, held in holders.items():
            shared = name in agreed
            found = agreed[name] if shared else [(0, held.numel())]
            self.pieces[name] = Piece(
                name, held.shape, held, 0, found, group if shared else None, alone=not shared
            )

    def synchronise(self, last: bool) -> AbstractContextManager[Any]:
        """Sets whether the next backward pass reduces; there is no context to enter."""
        if last != self._syncs:
            model: Any = self.bare.model
            model.set_requires_gradient_sync(last)
            self._syncs = last
        return _NOTHING

    def _sharded(self) -> Iterator[Any]:
        """The engine's record of each sharded parameter."""
        for module in self.bare.model.modules():
            if isinstance(module, FSDPModule):
                for group in module._get_fsdp_state()._fsdp_param_groups:
                    yield from group.fsdp_params

    def pending(self, piece: Piece) -> Tensor | None:
        """The gradient that waits for the last micro-batch."""
        for record in self._sharded():
            if record.sharded_param is piece.holder:
                found: Tensor | None = record.unsharded_accumulated_grad
                if found is None and hasattr(record, "_unsharded_param"):
                    found = record._unsharded_param.grad
                return found
        return None

    def _forget_pending(self) -> None:
        """Drops the gradients that wait."""
        for record in self._sharded():
            record.unsharded_accumulated_grad = None
            if hasattr(record, "_unsharded_param"):
                record._unsharded_param.grad = None

    def reduced(self, piece: Piece) -> Tensor | None:
        """`.grad` of the sharded parameter."""
        return None if piece.holder.grad is None else part(piece, piece.holder.grad)

    def drop_gradients(self) -> None:
        """Nothing is kept besides those of the parameters."""

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Sets `.grad` of the sharded parameters, which the engine adds to."""
        self._forget_pending()
        for name, piece in self.pieces.items():
            given = gradients.get(name)
            piece.holder.grad = None if given is None else like_holder([(piece, given)], piece.holder.dtype)

    def rest(self) -> None:
        """Every unit's weights in their sharded form, also after an error in the middle of a step."""
        for module in self.bare.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def unwrap(self) -> None:
        """Takes off what `fully_shard` put on: classes, hooks, records."""
        for module in list(self.bare.model.modules()):
            if isinstance(module, FSDPModule):
                _strip(module)
        self.bare.restore()


def _rows(holder: DTensor, plan: Plan) -> tuple[int, int]:
    """The range of flat elements of this rank's rows: as many for each rank as rows divide, rounded up."""
    ranks, rank = plan.mesh.size(plan.mesh.ndim - 1), plan.mesh.get_local_rank(plan.mesh.ndim - 1)
    rows, width = holder.shape[0], holder.shape[1:].numel()
    each = -(-rows // ranks)
    begin, end = min(rank * each, rows), min((rank + 1) * each, rows)
    return begin * width, end * width


def mixed_precision(given: Any) -> MixedPrecisionPolicy:
    """The engine's policy by names of dtypes; its default where nothing is given."""
    named: dict[str, Any] = {
        key: getattr(torch, value) if isinstance(value, str) else value for key, value in given.items()
    }
    return MixedPrecisionPolicy(**named)


def _strip(module: FSDPModule) -> None:
    """Makes a module the plain one that it was."""
    inner: Any = module
    state = inner._get_fsdp_state()
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    for group in state._fsdp_param_groups:
        handles += group._module_to_pre_save_state_dict_hook_handle.values()
        handles += group._module_to_pre_load_state_dict_hook_handle.values()
        handles += [record._post_load_hook_handle for record in group.fsdp_params]
    for handle in handles:
        handle.remove()
    classes = type(inner).__mro__
    inner.__class__ = classes[getattr(type(inner), "_orig_cls_mro_index", 2)]
    _composable_state._module_state_mapping.pop(inner, None)
    for key in (_contract.STATE_KEY, _contract.REGISTRY_KEY):
        vars(inner).pop(key, None)
