"""Clipping by the global norm, over a list of gradients that is made once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_grad_norm(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scales gradients in place so that their global L2 norm is at most `max_norm`.

    The numbers are those of `torch.nn.utils.clip_grad_norm_` (norm of the norms; coefficient
    `max_norm / (norm + 1e-6)`, at most 1), without its walk over parameters by device and dtype where they
    all lie on one device. Nothing is read back from an accelerator; on a CPU, where reading is free, gradients
    below the limit are spared the multiplication by exactly 1.

    Args:
        parameters: those that are trained; the ones without a gradient are passed over.
        max_norm: the largest norm allowed.

    Returns:
        The norm before clipping, a scalar tensor on the device.
    """
    gradients = [found.grad for found in parameters if found.grad is not None]
    if not gradients:
        return torch.zeros(())
    first = gradients[0]
    device, dtype = first.device, first.dtype
    for gradient in gradients:
        if gradient.device != device or gradient.dtype != dtype or gradient.is_sparse:
            return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    # A NaN is not below the limit, and goes on into the gradients as it does in torch.
    if device.type != "cpu" or not norm.item() < 0.999 * max_norm:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
