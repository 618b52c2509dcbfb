"""The first generation: `FullyShardedDataParallel`, which wraps modules and keeps their parameters in flat ones."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    BackwardPrefetch,
    CPUOffload,
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecision,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictType,
    _runtime_utils,
)

from drivetrain.errors import ConfigurationError
from drivetrain_plugins.strategy.fsdp.blocks import inner_first
from drivetrain_plugins.strategy.fsdp.engine import Bare, Plan
from drivetrain_plugins.strategy.fsdp.shards import Piece, agree_on_spans, slice_of

_NOTHING: AbstractContextManager[None] = nullcontext()
_STRATEGIES = {
    "full_shard": ShardingStrategy.FULL_SHARD,
    "shard_grad_op": ShardingStrategy.SHARD_GRAD_OP,
    "hybrid_shard": ShardingStrategy.HYBRID_SHARD,
    "no_shard": ShardingStrategy.NO_SHARD,
}
_PREFETCH = {
    "backward_pre": BackwardPrefetch.BACKWARD_PRE,
    "backward_post": BackwardPrefetch.BACKWARD_POST,
    "no_prefetch": None,
}


class First:
    """Units wrapped one by one, inner ones first, and the model around them."""

    def __init__(self) -> None:
        self.pieces: dict[str, Piece] = {}
        self._wrapped_at: list[tuple[nn.Module, str, nn.Module]] = []
        # Of each piece its flat parameter's handle, and where it begins in the shard and in the whole of it.
        self._places: dict[str, tuple[Any, int, int]] = {}

    def wrap(self, bare: Bare, plan: Plan) -> None:
        """Wraps the model's units, and the model."""
        self.bare, self.plan = bare, plan
        model = bare.model
        scalars = bare.scalars(plan.device)
        common = self._common(scalars)
        if not plan.settings.use_orig_params:
            self._check_frozen()
        names = {id(parameter): name for name, parameter in bare.parameters.items()}
        where = _parents(model)
        with _quiet():
            for _, unit in inner_first(plan.units):
                wrapper = self._wrap_one(unit, common, names)
                for parent, key in where[id(unit)]:
                    self._wrapped_at.append((parent, key, unit))
                    parent._modules[key] = wrapper
            self.wrapped: nn.Module = self._wrap_one(model, common, names)
            self._set_state_dict_type()
            _runtime_utils._lazy_init(self.wrapped, self.wrapped)  # the outermost is so from here on
        self._note_pieces()

    def _common(self, scalars: list[nn.Parameter]) -> dict[str, Any]:
        """What every unit's wrapper is given."""
        plan, settings = self.plan, self.plan.settings
        named = {
            key: getattr(torch, value) if isinstance(value, str) else value
            for key, value in settings.mixed_precision.items()
        }
        common: dict[str, Any] = {
            "sharding_strategy": _STRATEGIES[settings.mode],
            "cpu_offload": CPUOffload(offload_params=True) if settings.offload else None,
            "backward_prefetch": _PREFETCH[settings.backward_prefetch],
            "forward_prefetch": settings.forward_prefetch,
            "limit_all_gathers": settings.limit_all_gathers,
            "use_orig_params": settings.use_orig_params,
            "mixed_precision": MixedPrecision(**named) if named else None,
            "device_id": plan.device,
        }
        if plan.mesh.ndim > 1:
            common["device_mesh"] = plan.mesh
        else:
            common["process_group"] = plan.mesh.get_group()
        if scalars:
            common["ignored_states"] = scalars  # which cannot be split; the strategy keeps them alike
        return common

    def _wrap_one(
        self, unit: nn.Module, common: dict[str, Any], names: dict[int, str]
    ) -> FullyShardedDataParallel:
        own = [name for p in unit.parameters() if (name := names.get(id(p))) is not None and p.dim()]
        for name in own:
            if self.bare.parameters[name].device.type == "meta":
                names[id(self.bare.materialise(name, self.plan.device))] = name
        for module in unit.modules():
            for attribute, buffer in module._buffers.items():
                if buffer is not None and buffer.device.type == "meta":
                    module._buffers[attribute] = torch.zeros_like(buffer, device=self.plan.device)
        wrapper = FullyShardedDataParallel(unit, **common)
        wrapper.training = unit.training  # a wrapper says that it trains, whatever is inside
        if not self.plan.settings.use_orig_params:
            for name in own:
                self.bare.empty(name)
        return wrapper

    def _check_frozen(self) -> None:
        """A flat parameter is trained or frozen as a whole.

        Raises:
            ConfigurationError: a unit has both kinds.
        """
        taken: set[int] = set()
        for name, unit in [*inner_first(self.plan.units), ("the model's own part", self.bare.model)]:
            own = [p for p in unit.parameters() if id(p) not in taken and p.dim()]
            taken.update(id(p) for p in own)
            if len({p.requires_grad for p in own}) > 1:
                raise ConfigurationError(
                    "fsdp_config's use_orig_params=False cannot have trained and frozen parameters in one unit, as "
                    f"{name} has: leave it out."
                )

    def _set_state_dict_type(self) -> None:
        if self.plan.settings.state_dict_type == "sharded_state_dict":
            FullyShardedDataParallel.set_state_dict_type(
                self.wrapped, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig()
            )
        else:
            # Offloading what lies on the host already reads freed memory.
            config = FullStateDictConfig(
                offload_to_cpu=self.plan.device.type != "cpu" and not self.plan.settings.offload,
                rank0_only=False,
            )
            FullyShardedDataParallel.set_state_dict_type(self.wrapped, StateDictType.FULL_STATE_DICT, config)

    def _handles(self) -> Iterator[Any]:
        for module in FullyShardedDataParallel.fsdp_modules(self.wrapped):
            if module._handle is not None:
                yield module._handle

    def _note_pieces(self) -> None:
        """Where each rank's elements lie in its flat parameters."""
        names = {
            (id(module), attr): name for name, places in self.bare.places.items() for module, attr in places
        }
        spans: dict[str, tuple[int, int]] = {}
        found: dict[str, tuple[Tensor, int, torch.Size]] = {}
        spread = False
        for handle in self._handles():
            flat = handle.flat_param
            spread = spread or handle.uses_sharded_strategy
            starts = _starts(flat)
            for number, (attribute, module, _) in enumerate(flat._param_infos):
                name = names[id(module), attribute]
                shape = flat._shapes[number]
                begin, end, offset = 0, shape.numel(), starts[number]
                if handle.uses_sharded_strategy:
                    info = flat._shard_param_infos[number]
                    begin = info.intra_param_start_idx if info.in_shard else 0
                    end = info.intra_param_end_idx + 1 if info.in_shard else 0
                    offset = info.offset_in_shard if info.in_shard else 0
                spans[name] = (begin, end)
                self._places[name] = (handle, offset, starts[number])
                own = self.plan.settings.use_orig_params
                found[name] = (self.bare.parameters[name] if own else flat, 0 if own else offset, shape)
        group = self.plan.shard_group if spread else None
        agreed = (
            agree_on_spans(spans, group) if group is not None else {n: [span] for n, span in spans.items()}
        )
        for name, parameter in self.bare.parameters.items():
            if name in found:
                holder, offset, shape = found[name]
                self.pieces[name] = Piece(name, shape, holder, offset, agreed[name], group)
            else:
                whole = [(0, parameter.numel())]
                self.pieces[name] = Piece(name, parameter.shape, parameter, 0, whole, None, alone=True)

    def synchronise(self, last: bool) -> AbstractContextManager[Any]:
        """`no_sync` but for the last micro-batch."""
        if last:
            return _NOTHING
        wrapped: Any = self.wrapped
        context: AbstractContextManager[Any] = wrapped.no_sync()
        return context

    def pending(self, piece: Piece) -> Tensor | None:
        """This rank's gradient in the whole flat gradient that waits for the last micro-batch."""
        if piece.alone:
            return None
        handle, _, start = self._places[piece.name]
        gradient: Tensor | None = handle.flat_param.grad
        if (
            not self._trained(piece)
            or not handle.uses_sharded_strategy
            or gradient is None
            or gradient.size() != handle.flat_param._unpadded_unsharded_size
        ):
            return None
        return gradient.detach()[start : start + piece.numel].view(piece.shape)

    def reduced(self, piece: Piece) -> Tensor | None:
        """This rank's elements of the flat gradient's shard."""
        if piece.alone:
            return None if piece.holder.grad is None else piece.holder.grad.reshape(-1)
        handle, offset, _ = self._places[piece.name]
        gradient = self._shard_of_gradient(handle) if self._trained(piece) else None
        begin, end = piece.span
        return None if gradient is None else gradient.detach()[offset : offset + end - begin]

    def _trained(self, piece: Piece) -> bool:
        """A flat gradient has a place also for what is frozen."""
        return self.bare.parameters[piece.name].requires_grad

    def _shard_of_gradient(self, handle: Any) -> Tensor | None:
        flat = handle.flat_param
        saved: Tensor | None = getattr(flat, "_saved_grad_shard", None)
        if saved is not None:
            return saved
        gradient: Tensor | None = flat.grad
        size = flat._local_shard.size() if handle.uses_sharded_strategy else flat.size()
        return gradient if gradient is not None and gradient.size() == size else None

    def drop_gradients(self) -> None:
        """The flat gradients too, of which those of the parameters were views."""
        for handle in self._handles():
            handle.flat_param.grad = None
            if hasattr(handle.flat_param, "_saved_grad_shard"):
                del handle.flat_param._saved_grad_shard

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Sets the shard of each flat gradient, which the engine adds to."""
        made: dict[int, Tensor] = {}
        for name, piece in self.pieces.items():
            given = gradients.get(name)
            if piece.alone:
                piece.holder.grad = None if given is None else given.to(piece.holder, copy=True)
                continue
            handle, offset, _ = self._places[name]
            flat = handle.flat_param
            if given is not None:
                if id(flat) not in made:
                    made[id(flat)] = torch.zeros_like(flat.data)
                begin, end = piece.span
                made[id(flat)][offset : offset + end - begin].copy_(slice_of(piece, given))
        for handle in self._handles():
            flat = handle.flat_param
            flat.grad = made.get(id(flat))
            if hasattr(flat, "_saved_grad_shard"):
                del flat._saved_grad_shard
            if self.plan.settings.use_orig_params:
                if handle.uses_sharded_strategy:
                    handle._use_sharded_grad_views()
                else:
                    handle._use_unsharded_grad_views()

    def rest(self) -> None:
        """Every flat parameter in its sharded form, so that nothing gathered earlier is taken for the weights."""
        for handle in self._handles():
            if handle.uses_sharded_strategy:
                handle.reshard(True)
                handle.post_reshard()
                handle._prefetched = False

    def unwrap(self) -> None:
        """Takes the wrappers out."""
        for parent, key, unit in self._wrapped_at:
            parent._modules[key] = unit
        self.bare.restore()


def _parents(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place that a module stands at."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is not None:
                found.setdefault(id(child), []).append((parent, key))
    return found


def _starts(flat: Any) -> list[int]:
    """Where each parameter begins in the whole flat parameter, which may be padded between them."""
    starts, position = [], 0
    for size, padding in zip(flat._numels_with_padding, flat._is_padding_mask, strict=True):
        if not padding:
            starts.append(position)
        position += size
    return starts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of this generation's age, and of a world of one, which the documents say as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*switching to use `NO_SHARD`.*")
        yield
