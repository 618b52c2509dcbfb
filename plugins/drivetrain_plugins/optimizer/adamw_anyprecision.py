"""AdamW whose two moments are kept in chosen dtypes, and whose updates lose nothing to weights of few digits.

A weight in bfloat16 has eight bits of precision: an update of less than a 256th of it is rounded away, and training
stands still. Kahan's summation (Kahan, "Further remarks on reducing truncation errors", 1965; for weights in bfloat16
Zamirai et al., "Revisiting BFloat16 Training", 2021) keeps what was rounded away, and adds it the next time:

    u <- c - lr · decay · p - lr · m̂ / (sqrt(v̂) + eps)       m̂, v̂: Adam's moments, corrected
    p' <- p + u  (rounded)          c <- u - (p' - p)

All arithmetic is in float32 (float64 for weights in float64), and what is kept is rounded to its dtype. With all three
in float32 and no summation it is AdamW (Loshchilov and Hutter, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from drivetrain_plugins.optimizer.base import OptimizerPlugin, adam_kwargs
from drivetrain_plugins.optimizer.options import AnyPrecisionOptions


class AnyPrecisionAdamW(torch.optim.Optimizer):
    """AdamW with dtypes for its state, and compensated updates.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decay a step, times the learning rate.
        use_kahan_summation: keeps what an update loses to rounding.
        momentum_dtype: of the first moment.
        variance_dtype: of the second moment.
        compensation_buffer_dtype: of what rounding has lost.

    Raises:
        ValueError: a number out of its range, or a dtype that is no floating one.
    """

    steps_alone = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        use_kahan_summation: bool = False,
        momentum_dtype: torch.dtype = torch.float32,
        variance_dtype: torch.dtype = torch.float32,
        compensation_buffer_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if lr < 0.0 or eps < 0.0 or weight_decay < 0.0:
            raise ValueError(
                f"lr ({lr}), eps ({eps}) and weight_decay ({weight_decay}) must not be negative."
            )
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"Both betas must lie in [0, 1), and are {betas}.")
        for dtype in (momentum_dtype, variance_dtype, compensation_buffer_dtype):
            if not dtype.is_floating_point:
                raise ValueError(f"State is kept in a floating dtype, and {dtype} is none.")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "use_kahan_summation": use_kahan_summation,
            "momentum_dtype": momentum_dtype,
            "variance_dtype": variance_dtype,
            "compensation_buffer_dtype": compensation_buffer_dtype,
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
            alike: dict[tuple[torch.dtype, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.dtype, self._count(parameter, group)), []).append(parameter)
            for (dtype, t), parameters in alike.items():
                self._update(parameters, group, t, torch.float64 if dtype is torch.float64 else torch.float32)
        return loss

    def _count(self, parameter: Tensor, group: dict[str, Any]) -> int:
        """Begins a parameter's state, or sees to its dtypes, and counts the step."""
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            raise RuntimeError(
                "AnyPrecisionAdamW takes no sparse gradients; use torch.optim.SparseAdam for them."
            )
        state = self.state[parameter]
        dtypes = {"exp_avg": group["momentum_dtype"], "exp_avg_sq": group["variance_dtype"]}
        if group["use_kahan_summation"]:
            dtypes["compensation"] = group["compensation_buffer_dtype"]
        for key, dtype in dtypes.items():
            if key not in state:
                state[key] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            elif state[key].dtype is not dtype:  # a state_dict's takes the parameter's when it is loaded
                state[key] = state[key].to(dtype)
        state["step"] = t = int(state.get("step", 0)) + 1
        return t

    def _update(self, parameters: list[Tensor], group: dict[str, Any], t: int, dtype: torch.dtype) -> None:
        """One update of parameters of one dtype, which have taken as many steps."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        gradients = _in(dtype, [parameter.grad for parameter in parameters if parameter.grad is not None])
        wide_means, wide_squares = _in(dtype, means), _in(dtype, squares)

        torch._foreach_lerp_(wide_means, gradients, 1.0 - beta1)
        torch._foreach_mul_(wide_squares, beta2)
        torch._foreach_addcmul_(wide_squares, gradients, gradients, value=1.0 - beta2)
        denominators = torch._foreach_sqrt(wide_squares)
        torch._foreach_div_(denominators, math.sqrt(1.0 - beta2**t))
        torch._foreach_add_(denominators, group["eps"])
        step_size = lr / (1.0 - beta1**t)

        if group["use_kahan_summation"]:
            kept = [state["compensation"] for state in states]
            before = torch._foreach_add(_in(dtype, parameters), 0.0)
            updates = torch._foreach_mul(before, -lr * group["weight_decay"])
            torch._foreach_add_(updates, _in(dtype, kept))
            torch._foreach_addcdiv_(updates, wide_means, denominators, value=-step_size)
            _copy(parameters, torch._foreach_add(before, updates))
            torch._foreach_sub_(updates, torch._foreach_sub(_in(dtype, parameters), before))
            _copy(kept, updates)
        else:
            wide = _in(dtype, parameters)
            if group["weight_decay"]:
                torch._foreach_mul_(wide, 1.0 - lr * group["weight_decay"])
            torch._foreach_addcdiv_(wide, wide_means, denominators, value=-step_size)
            _put_back(parameters, wide)
        _put_back(means, wide_means)
        _put_back(squares, wide_squares)


def _in(dtype: torch.dtype, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, or where they are of another dtype copies in this one."""
    return [tensor.to(dtype) for tensor in tensors]


def _put_back(tensors: list[Tensor], computed: list[Tensor]) -> None:
    """Rounds what was computed in copies into the tensors that are kept."""
    if computed[0] is not tensors[0]:
        _copy(tensors, computed)


def _copy(tensors: Sequence[Tensor], computed: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, computed, strict=True):  # torch's _foreach_copy_ takes no DTensors
        tensor.copy_(value)


class AdamWAnyPrecision(OptimizerPlugin[AnyPrecisionOptions]):
    """`optim="adamw_anyprecision"`."""

    name = "adamw_anyprecision"
    default_options = AnyPrecisionOptions()

    def cls_of(self, args: Any) -> Callable[..., torch.optim.Optimizer]:
        """Our `AnyPrecisionAdamW`."""
        return AnyPrecisionAdamW

    def kwargs_of(self, args: Any, options: AnyPrecisionOptions) -> dict[str, Any]:
        """Adam's arguments, and the options with torch's dtypes."""
        return {
            **adam_kwargs(args),
            "use_kahan_summation": options.use_kahan_summation,
            "momentum_dtype": getattr(torch, options.momentum_dtype),
            "variance_dtype": getattr(torch, options.variance_dtype),
            "compensation_buffer_dtype": getattr(torch, options.compensation_buffer_dtype),
        }
