"""The global norm of sharded gradients, clipping by it, and a loss scaler that all ranks agree with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from drivetrain_plugins.strategy.fsdp.shards import Piece, local


def holders_of(pieces: Sequence[Piece]) -> list[tuple[Tensor, dist.ProcessGroup | None]]:
    """Each holder once, with the ranks that share it."""
    seen: dict[int, tuple[Tensor, dist.ProcessGroup | None]] = {}
    for piece in pieces:
        seen.setdefault(id(piece.holder), (piece.holder, piece.group))
    return list(seen.values())


def clip_grad_norm(
    holders: Sequence[tuple[Tensor, dist.ProcessGroup | None]], max_norm: float, device: torch.device
) -> Tensor:
    """Scales the gradients in place so that their norm over all shards is at most `max_norm`. A collective.

    The numbers are those of `torch.nn.utils.clip_grad_norm_` on whole gradients, up to the order of the sum:
    coefficient `max_norm / (norm + 1e-6)`, at most 1.

    Args:
        holders: the tensors whose gradients count, and the group that each is spread over.
        max_norm: the largest norm allowed.
        device: where the norm is.

    Returns:
        The norm before clipping, a scalar tensor.
    """
    total = torch.zeros((), dtype=torch.float32, device=device)
    spread = torch.zeros((), dtype=torch.float32, device=device)
    group: dist.ProcessGroup | None = None
    whole: list[Tensor] = []
    parts: list[Tensor] = []
    for holder, shared in holders:
        group = group or shared
        if holder.grad is not None:
            (whole if shared is None else parts).append(local(holder.grad))
    gradients = whole + parts
    if parts:
        spread = _squares(parts, device)
    if group is not None:
        dist.all_reduce(spread, group=group)
    if whole:
        total = _squares(whole, device)
    norm = (spread + total).sqrt()
    if gradients:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, factor.to(gradients[0].device))
    return norm


def _squares(gradients: list[Tensor], device: torch.device) -> Tensor:
    norms = torch._foreach_norm([gradient for gradient in gradients if gradient.numel()])
    if not norms:
        return torch.zeros((), dtype=torch.float32, device=device)
    return torch.stack([norm.float() for norm in norms]).square().sum().to(device)


class ShardedScaler(torch.amp.GradScaler):
    """A loss scaler over parts of gradients: an overflow on one rank is one on all."""

    found: Tensor

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        """Unscales the parts in place, and asks everybody whether all of them are finite. A collective."""
        gradients = [
            local(parameter.grad)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self.found = torch.zeros((1,), dtype=torch.float32, device=inv_scale.device)
        by_device: dict[Any, list[Tensor]] = {}
        for gradient in gradients:
            by_device.setdefault((gradient.device, gradient.dtype), []).append(gradient)
        for (device, _), some in by_device.items():
            found = self.found.to(device)
            torch._amp_foreach_non_finite_check_and_unscale_(some, found, inv_scale.to(device))
            self.found = torch.maximum(self.found, found.to(self.found.device))
        dist.all_reduce(self.found, op=dist.ReduceOp.MAX)
        return {self.found.device: self.found}
