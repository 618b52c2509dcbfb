"""Adafactor (Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018).

The second moment of a matrix is kept as the means of its rows and of its columns (algorithm 4), that of other
parameters whole (algorithm 5); an update whose root mean square exceeds a threshold is scaled down. The
learning rate comes from outside:

    b    = 1 - t^c                             c = decay_rate
    R, C <- b R + (1 - b) mean(g² + e1)        over columns, over rows
    u    = g / sqrt(R C / mean(R))
    u    <- u / max(1, rms(u) / threshold)
    p    <- p - decay · a · p - a · u          a = lr, times max(e2, rms(p)) where scale_parameter

torch.optim.Adafactor always scales by the parameter and takes min(lr, 1 / sqrt(t)) for the step, which
cannot be turned off, so it gives other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from drivetrain_plugins.optimizer.base import OptimizerPlugin
from drivetrain_plugins.optimizer.options import AdafactorOptions

_HALF = (torch.float16, torch.bfloat16)


class Adafactor(torch.optim.Optimizer):
    """Adafactor with the learning rate from outside.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate.
        eps: what is added to squared gradients, and the least scale of a parameter.
        clip_threshold: root mean square above which an update is scaled down.
        decay_rate: exponent of the second moment's decay.
        beta1: decay of the mean of updates; None keeps none.
        weight_decay: decay a step, times the learning rate.
        scale_parameter: multiplies the learning rate by the root mean square of the parameter.

    Raises:
        ValueError: a number out of its range.
    """

    steps_alone = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = False,
    ) -> None:
        if lr < 0.0 or weight_decay < 0.0:
            raise ValueError(f"lr ({lr}) and weight_decay ({weight_decay}) must not be negative.")
        if clip_threshold <= 0.0:
            raise ValueError(f"clip_threshold must be positive, and is {clip_threshold}.")
        if decay_rate > 0.0:
            raise ValueError(f"decay_rate must not be positive, and is {decay_rate}.")
        defaults = {
            "lr": lr,
            "eps": tuple(eps),
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Returns what `closure`, called first with gradients on, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group)
        return loss

    def _step_parameter(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        grad = parameter.grad
        if grad.is_sparse:
            raise RuntimeError("Adafactor takes no sparse gradients; use optim='sgd' for sparse embeddings.")
        # States and arithmetic are in float32, whatever the parameter is kept in.
        grad = grad.float() if grad.dtype in _HALF else grad
        value = parameter.float() if parameter.dtype in _HALF else parameter
        state = self.state[parameter]
        if not state:
            self._start(state, grad, group)
        state["step"] = t = int(state["step"]) + 1
        rate = float(group["lr"])
        if group["scale_parameter"]:
            rate *= max(group["eps"][1], _rms(value).item())

        decay = 1.0 - math.pow(t, group["decay_rate"])
        squared = grad.square().add_(group["eps"][0])
        if grad.dim() >= 2:
            rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            rows.mul_(decay).add_(squared.mean(dim=-1), alpha=1.0 - decay)
            columns.mul_(decay).add_(squared.mean(dim=-2), alpha=1.0 - decay)
            # The second moment's estimate is rows · columns / mean(rows); this is its inverse root.
            of_rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
            update = (of_rows * columns.rsqrt().unsqueeze(-2)).mul_(grad)
        else:
            moment = state["exp_avg_sq"]
            moment.mul_(decay).add_(squared, alpha=1.0 - decay)
            update = moment.rsqrt().mul_(grad)
        update.div_((_rms(update) / group["clip_threshold"]).clamp_(min=1.0)).mul_(rate)
        if group["beta1"] is not None:
            update = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1.0 - group["beta1"])
        if group["weight_decay"] != 0.0:
            value.mul_(1.0 - group["weight_decay"] * rate)
        value.sub_(update)
        if value is not parameter:
            parameter.copy_(value)

    @staticmethod
    def _start(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> None:
        state["step"] = 0
        if group["beta1"] is not None:
            state["exp_avg"] = torch.zeros_like(grad)
        if grad.dim() >= 2:
            state["exp_avg_sq_row"] = grad.new_zeros(grad.shape[:-1])
            state["exp_avg_sq_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
        else:
            state["exp_avg_sq"] = torch.zeros_like(grad)


def _rms(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm / math.sqrt(tensor.numel())


class AdafactorPlugin(OptimizerPlugin[AdafactorOptions]):
    """`optim="adafactor"`."""

    name = "adafactor"
    default_options = AdafactorOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """Our `Adafactor`."""
        return Adafactor

    def kwargs_of(self, args: Any, options: AdafactorOptions) -> dict[str, Any]:
        """The learning rate and the options."""
        return {
            "lr": args.learning_rate,
            "scale_parameter": options.scale_parameter,
            "clip_threshold": options.clip_threshold,
            "decay_rate": options.decay_rate,
            "beta1": options.beta1,
            "eps": options.eps,
        }
