"""Gradients of an unfinished accumulation: each stage of ZeRO keeps them in a place of its own.

Whole gradients are the mean over the processes of what they have summed so far, as under every strategy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from drivetrain_plugins.strategy.deepspeed.pieces import Piece, Pieces, shape_of


def gradients_out(
    pieces: Pieces | None, named: dict[str, Any], stage: int, world_size: int
) -> dict[str, Tensor]:
    """Whole gradients by name. A collective: where one process has a gradient, all take part.

    Args:
        pieces: of this process; None for stage 0.
        named: the parameters of the bare model by name, each once.
        stage: of ZeRO.
        world_size: how many processes there are.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        if pieces is None or stage == 1:
            whole = _averaged(parameter, world_size)
        else:
            whole = _put_together(pieces, parameter)
        found[name] = whole.to("cpu", copy=True)
    return found


def _averaged(parameter: Any, world_size: int) -> Tensor:
    """Stages 0 and 1 reduce at the last micro-batch: until then every process has its own sum."""
    whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
    if world_size > 1:
        dist.all_reduce(whole)
        whole /= world_size
    return whole


def _put_together(pieces: Pieces, parameter: Any) -> Tensor:
    """Stages 2 and 3 reduce at every micro-batch: every process has its piece of the mean."""
    whole = torch.zeros(shape_of(parameter), dtype=torch.float32, device=_device(pieces))
    piece = pieces.of(parameter)
    held = _held(pieces, parameter, piece) if piece is not None else None
    if piece is not None and held is not None:
        piece.of_whole(whole).copy_(held)
    dist.all_reduce(whole)
    return whole


def _device(pieces: Pieces) -> torch.device:
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def _held(pieces: Pieces, parameter: Any, piece: Piece) -> Tensor | None:
    """What this process has of a parameter's gradient, flat."""
    zero = pieces.zero
    if pieces.stage == 3:
        held: Tensor = _partitions(zero)[parameter.ds_id].narrow(0, 0, piece.length)
        return held
    if zero.cpu_offload:
        kept = zero.accumulated_grads_in_cpu.get(zero.get_param_id(parameter))
        return None if kept is None else piece.of_whole(kept)
    sums = zero.all_grad_tensors.get(piece.flat)
    if sums is None:
        return None
    place = next(n for n, p in enumerate(zero.params_in_partition[piece.flat]) if p is parameter)
    return piece.of_whole(sums[place])


def _partitions(zero: Any) -> dict[int, Tensor]:
    found: dict[int, Tensor] = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
    return found


def gradients_in(
    pieces: Pieces | None,
    named: dict[str, Any],
    gradients: dict[str, Tensor],
    stage: int,
    device: torch.device,
) -> None:
    """Puts the gradients of an unfinished accumulation back; none at all clears them.

    Args:
        pieces: of this process; None for stage 0.
        named: the parameters of the bare model by name, each once.
        gradients: whole, by name.
        stage: of ZeRO.
        device: of the model.
    """
    if pieces is None or stage == 1:
        for name, parameter in named.items():
            given = gradients.get(name)
            # Every process takes the mean, whose mean it is.
            parameter.grad = None if given is None else given.to(device, parameter.dtype, copy=True)
        return
    if not gradients:
        return
    zero = pieces.zero
    if stage == 3:
        for name, parameter in named.items():
            piece = pieces.of(parameter)
            if piece is None:
                continue
            held = _partitions(zero)[parameter.ds_id].zero_()
            if name in gradients:
                held.narrow(0, 0, piece.length).copy_(piece.of_whole(gradients[name]))
        zero._epilogue_ran_this_backward = True  # the next forward counts on, so that the next backward adds
    elif zero.cpu_offload:
        for name, parameter in named.items():
            if pieces.of(parameter) is not None:
                whole = gradients.get(name, torch.zeros(shape_of(parameter)))
                kept = whole.to("cpu", parameter.dtype, copy=True).flatten()
                zero.accumulated_grads_in_cpu[zero.get_param_id(parameter)] = kept
        zero.micro_step_id = 0
    else:
        names = {id(parameter): name for name, parameter in named.items()}
        for flat, members in enumerate(zero.params_in_partition):
            zero.all_grad_tensors[flat] = [_of(p, gradients.get(names[id(p)]), device) for p in members]


def _of(parameter: Any, given: Tensor | None, device: torch.device) -> Tensor:
    if given is None:
        return torch.zeros_like(parameter).detach()
    return given.to(device, parameter.dtype, copy=True)
