"""Clipping gives torch's numbers, bit for bit."""

import pytest
import torch

from drivetrain.clipping import clip_grad_norm

SHAPES = [(64, 32), (32,), (32, 10), (10,)]


def parameters(seed, scale, dtypes=(torch.float32,)):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, shape in enumerate(SHAPES):
        parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtypes[number % len(dtypes)]))
        parameter.grad = (torch.randn(shape, generator=generator) * scale).to(parameter.dtype)
        made.append(parameter)
    return made


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64,), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("special", [None, float("nan"), float("inf")])
def test_the_numbers_are_torchs(dtypes, special):
    clipped = 0
    for seed in range(40):
        ours, theirs = (parameters(seed, scale=seed / 1000, dtypes=dtypes) for _ in range(2))
        if special is not None:
            ours[0].grad[0, 0] = theirs[0].grad[0, 0] = special
        before = [p.grad.clone() for p in ours]
        norm = clip_grad_norm(ours, 1.0)
        torch.testing.assert_close(
            norm, torch.nn.utils.clip_grad_norm_(theirs, 1.0), rtol=0, atol=0, equal_nan=True
        )
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=0, equal_nan=True)
        clipped += not all(torch.equal(mine.grad, old) for mine, old in zip(ours, before, strict=True))
    assert clipped > 0  # both sides of the limit were seen
    assert special is not None or clipped < 40


def test_around_the_limit():
    """Norms a hair below and above the limit: the coefficient of torch is not exactly 1 there."""
    for norm in (0.998, 0.999, 0.9999, 0.99999999, 1.0, 1.000001, 1.01):
        ours, theirs = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        ours.grad, theirs.grad = torch.tensor([norm]), torch.tensor([norm])
        clip_grad_norm([ours], 1.0)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        assert torch.equal(ours.grad, theirs.grad)


def test_parameters_without_gradients_are_passed_over():
    used, unused = parameters(0, 1.0)[0], torch.nn.Parameter(torch.zeros(3))
    expected = used.grad.norm()
    torch.testing.assert_close(clip_grad_norm([used, unused], 1.0), expected)
    assert unused.grad is None
    assert clip_grad_norm([unused], 1.0).item() == 0.0
