"""The model's weights and gradients in the canonical form: out by gathering, in by slicing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from drivetrain.checkpoint import check_names, check_shape
from drivetrain.host_copies import copied
from drivetrain_plugins.strategy.fsdp.engine import Engine
from drivetrain_plugins.strategy.fsdp.shards import Receivers, gather, local, part, slice_of, wire


def weights_out(engine: Engine, to: Receivers) -> dict[str, Any]:
    """A copy of the bare model's state_dict, whole, on the host of the ranks that keep it. A collective.

    Of a state that is spread each rank has what it owns, and the first what is no parameter.
    """
    spread = to.owners is not None
    whole: dict[str, Tensor | None] = {}
    found: dict[str, Any] = {}
    for key, source in engine.bare.keys.items():
        if isinstance(source, str):
            if source not in whole:
                piece = engine.pieces[source]
                whole[source] = gather(piece, part(piece, piece.holder), to)
            if whole[source] is not None or not spread:
                found[key] = whole[source]
        elif spread and to.rank != 0:
            continue
        elif isinstance(source, tuple):
            module, attribute = source
            buffer = module._buffers[attribute]
            assert buffer is not None
            found[key] = copied(buffer)
        else:
            found[key] = copied(source.get_extra_state())
    return found


@torch.no_grad()
def weights_in(engine: Engine, weights: Mapping[str, Any]) -> None:
    """Sets this rank's part of whole weights; of tied names one is enough.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    bare = engine.bare
    kind = bare.kind
    tied = {source: key for key, source in bare.keys.items() if isinstance(source, str) and key in weights}
    missing = [
        key
        for key, source in bare.keys.items()
        if key not in weights and not (isinstance(source, str) and source in tied)
    ]
    unexpected = [key for key in weights if key not in bare.keys]
    check_names(kind, missing, unexpected)
    done: set[str] = set()
    for key, source in bare.keys.items():
        if isinstance(source, str):
            if source in done:
                continue
            done.add(source)
            piece = engine.pieces[source]
            value = weights[tied[source]]
            check_shape(key, value, piece.shape, kind)
            part(piece, piece.holder).copy_(slice_of(piece, value))
        elif isinstance(source, tuple):
            module, attribute = source
            buffer = module._buffers[attribute]
            assert buffer is not None
            check_shape(key, weights[key], buffer.shape, kind)
            buffer.copy_(weights[key])
        else:
            source.set_extra_state(weights[key])


def gradients_out(engine: Engine, to: Receivers) -> dict[str, Tensor]:
    """The gradients of an unfinished accumulation, averaged over the ranks, whole. A collective."""
    mine = {
        name: (engine.reduced(piece) is not None, engine.pending(piece) is not None)
        for name, piece in engine.pieces.items()
    }
    told: list[dict[str, tuple[bool, bool]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(told, mine)
    found: dict[str, Tensor] = {}
    for name, piece in engine.pieces.items():
        reduced = any(of_rank[name][0] for of_rank in told)
        waiting = any(of_rank[name][1] for of_rank in told)
        whole: Tensor | None = None
        if reduced:
            begin, end = piece.span
            found_here = engine.reduced(piece)
            elements = local(piece.holder).new_zeros(end - begin) if found_here is None else found_here
            # What every rank has whole is averaged, in which all must take part.
            whole = gather(piece, elements, to if piece.group is not None else Receivers(everywhere=True))
            if piece.group is None and whole is not None:
                whole = _averaged(whole, piece.holder.device)
        if waiting:
            own = engine.pending(piece)
            own = (
                torch.zeros(piece.shape, dtype=piece.holder.dtype, device=piece.holder.device)
                if own is None
                else own
            )
            averaged = _averaged(own.detach().reshape(piece.shape), piece.holder.device)
            whole = averaged if whole is None else whole + averaged
        if whole is not None and (to.owners is None or to.keeps(piece)):
            found[name] = whole
    return found


def _averaged(tensor: Tensor, device: torch.device) -> Tensor:
    averaged = tensor.to(wire(device), copy=True)
    dist.all_reduce(averaged)
    return (averaged / dist.get_world_size()).cpu()
