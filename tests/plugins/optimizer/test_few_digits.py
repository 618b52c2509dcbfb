"""`adamw_anyprecision`: dtypes of the state, and what Kahan's summation saves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain.errors import ConfigurationError
from drivetrain_plugins import optimizer as kind
from drivetrain_plugins.optimizer.adamw_anyprecision import AdamWAnyPrecision, AnyPrecisionAdamW
from drivetrain_plugins.optimizer.options import AnyPrecisionOptions

B1, B2, EPS, RATE, DECAY = 0.9, 0.999, 1e-8, 1e-3, 0.1
SHAPES = ((33, 7), (5,), (), (3, 2, 4))


def gradients(update: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(update)
    return [torch.randn(shape, generator=generator) + 0.5 for shape in SHAPES]


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(99)
    return [nn.Parameter((torch.randn(shape, generator=generator) + 1).to(dtype)) for shape in SHAPES]


def trained(
    dtype: torch.dtype, updates: int = 50, **options: Any
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    made = parameters(dtype)
    groups = [{"params": made[:2], "weight_decay": DECAY}, {"params": made[2:], "lr": RATE / 2}]
    optimizer = AnyPrecisionAdamW(groups, lr=RATE, betas=(B1, B2), eps=EPS, **options)
    for update in range(updates):
        for parameter, gradient in zip(made, gradients(update), strict=True):
            parameter.grad = gradient.to(dtype)
        optimizer.step()
    return made, optimizer


def by_hand(
    updates: int, dtype: torch.dtype, moments: torch.dtype, lost: torch.dtype | None
) -> list[torch.Tensor]:
    """The algorithm one number after another; what is kept is rounded to its dtype."""
    result = []
    for index, start in enumerate(parameters(dtype)):
        lr, decay = (RATE, DECAY) if index < 2 else (RATE / 2, 0.0)
        p = start.detach().clone()
        m = v = torch.zeros_like(p, dtype=moments)
        c = torch.zeros_like(p, dtype=lost) if lost else None
        for t in range(1, updates + 1):
            g = gradients(t - 1)[index].to(dtype).float()
            wide_m = m.float() + (1 - B1) * (g - m.float())
            wide_v = B2 * v.float() + (1 - B2) * g * g
            step = lr / (1 - B1**t) * wide_m / (wide_v.sqrt() / math.sqrt(1 - B2**t) + EPS)
            m, v = wide_m.to(moments), wide_v.to(moments)
            if c is None:
                p = (p.float() * (1 - lr * decay) - step).to(dtype)
            else:
                u = c.float() - lr * decay * p.float() - step
                after = (p.float() + u).to(dtype)
                c = (u - (after.float() - p.float())).to(lost)
                p = after
        result.append(p)
    return result


@pytest.mark.parametrize(
    ("dtype", "moments", "lost"),
    [
        (torch.float32, torch.float32, None),
        (torch.float32, torch.bfloat16, None),
        (torch.bfloat16, torch.float32, None),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float16),
    ],
)
def test_it_is_the_algorithm(dtype, moments, lost):
    options: dict[str, Any] = {"momentum_dtype": moments, "variance_dtype": moments}
    if lost is not None:
        options |= {"use_kahan_summation": True, "compensation_buffer_dtype": lost}
    made, optimizer = trained(dtype, **options)
    # One unit in the last place: a sum in another order may round the other way.
    near = {torch.float32: 1e-5, torch.bfloat16: 1 / 128, torch.float16: 1 / 1024}[dtype]
    for parameter, expected in zip(made, by_hand(50, dtype, moments, lost), strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=near, atol=near)
        state = optimizer.state[parameter]
        assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (moments, moments)
        assert state.get("compensation", torch.zeros((), dtype=lost)).dtype == (lost or torch.float32)


def test_without_options_it_is_torchs_adamw():
    made, _ = trained(torch.float32)
    others = parameters(torch.float32)
    groups = [
        {"params": others[:2], "weight_decay": DECAY},
        {"params": others[2:], "lr": RATE / 2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(B1, B2), eps=EPS)
    for update in range(50):
        for parameter, gradient in zip(others, gradients(update), strict=True):
            parameter.grad = gradient
        optimizer.step()
    for one, other in zip(made, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_summation_keeps_what_half_precision_loses():
    """Weights near 1 in bfloat16 cannot move by 0.001 at a time; with the summation they end where float32's do."""
    exact, _ = trained(torch.float32, 200)
    stuck, _ = trained(torch.bfloat16, 200)
    kept, _ = trained(torch.bfloat16, 200, use_kahan_summation=True)
    for index in (0, 1):
        moved = (exact[index] - parameters(torch.float32)[index]).abs().mean()
        assert (kept[index].float() - exact[index]).abs().mean() < 0.05 * moved
        assert (stuck[index].float() - exact[index]).abs().mean() > 0.3 * moved


def test_words_become_dtypes_and_what_is_none_is_refused(make_run):
    run = make_run(optim_args="use_kahan_summation=True,momentum_dtype=bfloat16,variance_dtype=bfloat16")
    kwargs = AdamWAnyPrecision(AnyPrecisionOptions()).class_and_kwargs(run.args)[1]
    assert kwargs["use_kahan_summation"] is True
    assert kwargs["momentum_dtype"] is torch.bfloat16
    assert kwargs["compensation_buffer_dtype"] is torch.bfloat16
    defaults = AdamWAnyPrecision(AnyPrecisionOptions()).class_and_kwargs(make_run().args)[1]
    assert defaults["momentum_dtype"] is torch.float32
    assert defaults["use_kahan_summation"] is False
    problems = kind.ADAMW_ANYPRECISION.probe(make_run(optim_args="momentum_dtype=int8").args)
    assert "option 'momentum_dtype' must be one of 'float32', 'bfloat16', 'float16', 'float64'" in problems[0]
    with pytest.raises(ValueError, match="floating dtype"):
        AnyPrecisionAdamW([nn.Parameter(torch.ones(1))], variance_dtype=torch.int8)
    sparse = nn.Embedding(5, 2, sparse=True)
    optimizer = AnyPrecisionAdamW(sparse.parameters())
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


# -- optimizers of one kind of device ------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["adamw_torch_xla", "adamw_apex_fused", "adamw_torch_npu_fused"])
def test_what_is_missing_is_said_with_what_to_use_instead(tmp_path, word):
    from drivetrain import TrainingArguments
    from drivetrain.resolve import resolve

    needed = {
        "adamw_torch_xla": "torch_xla",
        "adamw_apex_fused": "NVIDIA's apex",
        "adamw_torch_npu_fused": "torch_npu",
    }
    args = TrainingArguments(str(tmp_path), optim=word, report_to="none", use_cpu=True)
    with pytest.raises(ConfigurationError) as caught:
        resolve(args)
    (problem,) = caught.value.problems
    assert needed[word] in problem
    assert "pip install" in problem or "use optim=" in problem
