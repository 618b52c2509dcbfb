"""AdamW in the form that transformers used before torch had one.

It differs from torch's in two ways. Epsilon is added to the root of the uncorrected second moment, and the
correction goes into the step size; and weights are decayed after the step, at the learning rate:

    m  <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g²
    p  <- p - lr sqrt(1 - b2^t) / (1 - b1^t) · m / (sqrt(v) + eps)
    p  <- p - lr · decay · p

(Kingma and Ba, 2015, the order of computation at the end of section 2; Loshchilov and Hutter, 2019.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import AdamWHFOptions


class AdamW(torch.optim.Optimizer):
    """AdamW that decays after the step.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decay a step, times the learning rate.
        correct_bias: whether the step size corrects the moments' bias towards zero.

    Raises:
        ValueError: a number out of its range.
    """

    steps_alone = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        if lr < 0.0 or eps < 0.0 or weight_decay < 0.0:
            raise ValueError(
                f"lr ({lr}), eps ({eps}) and weight_decay ({weight_decay}) must not be negative."
            )
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"Both betas must lie in [0, 1), and are {betas}.")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
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
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        means: list[Tensor] = []
        squares: list[Tensor] = []
        step_sizes: list[float] = []
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("AdamW takes no sparse gradients; use torch.optim.SparseAdam for them.")
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["step"] = t = int(state["step"]) + 1
            params.append(p)
            grads.append(p.grad)
            means.append(state["exp_avg"])
            squares.append(state["exp_avg_sq"])
            correction = math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t) if group["correct_bias"] else 1.0
            step_sizes.append(-lr * correction)
        if not params:
            return
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1.0 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(params, means, denominators, scalars=step_sizes)
        if group["weight_decay"] > 0.0:
            torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])


class AdamWHF(OptimizerPlugin[AdamWHFOptions]):
    """`optim="adamw_hf"`."""

    name = "adamw_hf"
    default_options = AdamWHFOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """Our `AdamW`."""
        return AdamW

    def kwargs_of(self, args: Any, options: AdamWHFOptions) -> dict[str, Any]:
        """Adam's arguments, and `correct_bias` where it is off."""
        return {**adam_kwargs(args), **({} if options.correct_bias else {"correct_bias": False})}
