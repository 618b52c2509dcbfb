"""The papers' formulas, written out one parameter at a time: `STEPS[word](p, g, state, lr, decay, t)` is the next p.

`state` begins empty. Betas and epsilon are the arguments' defaults. Arithmetic is in float32, as the optimizers' is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

B1, B2, EPS = 0.9, 0.999, 1e-8
WARMUP = 8
BLOCK = 256
SMALL = 4096

Step = Callable[[Tensor, Tensor, dict[str, Any], float, float, int], Tensor]


def adamw(p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, t: int) -> Tensor:
    m = state["m"] = B1 * state.get("m", torch.zeros_like(g)) + (1 - B1) * g
    v = state["v"] = B2 * state.get("v", torch.zeros_like(g)) + (1 - B2) * g * g
    return p - lr * decay * p - lr * (m / (1 - B1**t)) / ((v / (1 - B2**t)).sqrt() + EPS)


def lion(p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, t: int) -> Tensor:
    m = state.get("m", torch.zeros_like(g))
    state["m"] = B2 * m + (1 - B2) * g
    return p - lr * decay * p - lr * torch.sign(B1 * m + (1 - B1) * g)


# -- state in few bits: each block of the flat tensor as codes of a table, times the block's largest ---------------


def rounded(x: Tensor, table: Tensor, block: int) -> Tensor:
    """What is left of a tensor that is kept as the nearest entries of a table."""
    flat = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % block)).view(-1, block)
    scale = flat.abs().amax(1, keepdim=True)
    scaled = flat / scale.clamp(min=1e-12)
    nearest = table[(scaled.unsqueeze(-1) - table).abs().argmin(-1)]
    return (nearest * scale).flatten()[: x.numel()].view_as(x)


def in_few_bits(step: Step, tables: Callable[[], dict[str, Tensor]], block: int, whole: bool = False) -> Step:
    """The step, after which the moments are rounded; small tensors (and, if `whole`, uneven ones) keep theirs."""

    def rounding(p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, t: int) -> Tensor:
        after = step(p, g, state, lr, decay, t)
        if p.numel() >= SMALL and not (whole and p.numel() % block):
            for key, table in tables().items():
                state[key] = rounded(state[key], table, block)
        return after

    return rounding


def bitsandbytes_tables() -> dict[str, Tensor]:
    from bitsandbytes.functional import create_dynamic_map

    return {"m": create_dynamic_map(signed=True), "v": create_dynamic_map(signed=False)}


def torchao_tables(bits: int) -> dict[str, Tensor]:
    import importlib

    made = importlib.import_module(f"torchao.optim.subclass_{bits}bit")
    return {"m": torch.tensor(made.get_qmap_signed()), "v": torch.tensor(made.get_qmap_unsigned())}


# -- schedule-free: x is what is evaluated, z the inner optimizer's, and g the gradient at y between them -----------


def schedule_free(inner: Callable[..., tuple[Tensor, float]]) -> Step:
    """The average of z, each step counting by the square of the highest rate so far; the result is y."""

    def step(y: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, t: int) -> Tensor:
        x, z = state.get("x", y), state.get("z", y)
        direction, rate = inner(g, state, lr, t)
        highest = state["highest"] = max(rate, state.get("highest", 0.0))
        total = state["total"] = state.get("total", 0.0) + highest**2
        c = highest**2 / total if total else 0.0
        state["z"] = z - rate * (direction + decay * y)
        state["x"] = (1 - c) * x + c * state["z"]
        return (1 - B1) * state["z"] + B1 * state["x"]

    return step


def _adam_direction(g: Tensor, state: dict[str, Any], lr: float, t: int) -> tuple[Tensor, float]:
    v = state["v"] = B2 * state.get("v", torch.zeros_like(g)) + (1 - B2) * g * g
    return g / ((v / (1 - B2**t)).sqrt() + EPS), lr * min(1.0, t / WARMUP)


def _sgd_direction(g: Tensor, state: dict[str, Any], lr: float, t: int) -> tuple[Tensor, float]:
    return g, lr * min(1.0, t / WARMUP)


def _radam_direction(g: Tensor, state: dict[str, Any], lr: float, t: int) -> tuple[Tensor, float]:
    v = state["v"] = B2 * state.get("v", torch.zeros_like(g)) + (1 - B2) * g * g
    most = 2 / (1 - B2) - 1
    length = most - 2 * t * B2**t / (1 - B2**t)
    if length <= 4:
        return g, 0.0
    rectified = math.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
    return g / ((v / (1 - B2**t)).sqrt() + EPS), lr * rectified


# -- low rank -----------------------------------------------------------------------------------------------------

RANK, GAP, SCALE = 4, 20, 0.25


def galore(p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, t: int) -> Tensor:
    """Of a matrix with at least as many rows as columns, projected from the right, and otherwise from the left."""
    tall = g.shape[0] >= g.shape[1]
    if "basis" not in state or t % GAP == 0:
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        state["basis"] = vh[:RANK] if tall else u[:, :RANK]
    basis = state["basis"]
    low = g @ basis.T if tall else basis.T @ g
    moved = adamw(torch.zeros_like(low), low, state, 1.0, 0.0, t)
    moved = lr * SCALE * (moved @ basis if tall else basis @ moved)
    # The package decays after its update.
    return (p + moved) * (1 - lr * decay)


STEPS: dict[str, Step] = {
    "adamw_torch": adamw,
    "adamw_torch_fused": adamw,
    "adamw_anyprecision": adamw,
    "paged_adamw_32bit": adamw,
    "lion": lion,
    "lion_32bit": lion,
    "adamw_bnb_8bit": in_few_bits(adamw, bitsandbytes_tables, BLOCK),
    "lion_8bit": in_few_bits(lion, lambda: {"m": bitsandbytes_tables()["m"]}, BLOCK),
    "adamw_torch_8bit": in_few_bits(adamw, lambda: torchao_tables(8), 256, whole=True),
    "adamw_torch_4bit": in_few_bits(adamw, lambda: torchao_tables(4), 128, whole=True),
    "schedule_free_adamw": schedule_free(_adam_direction),
    "schedule_free_sgd": schedule_free(_sgd_direction),
    "schedule_free_radam": schedule_free(_radam_direction),
    "galore_adamw": galore,
}
