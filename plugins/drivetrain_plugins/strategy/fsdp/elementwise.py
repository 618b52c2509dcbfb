"""Whether an optimizer works element by element, as one that is given parts of parameters must.

Found out by trying: two steps on a small tensor and on a part of it. An optimizer whose step on the part is not
that part of its step on the whole (Adafactor, Muon, LAMB, blocks of 8 bits) would train another model under FSDP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from drivetrain.errors import ConfigurationError
from drivetrain.slots import Group

# Large enough for optimizers that treat small tensors apart (8-bit ones do below 4096 elements).
_ROWS, _WIDTH = 96, 128


def check(cls: Callable[..., Any], kwargs: Mapping[str, Any], groups: Sequence[Group]) -> None:
    """Refuses an optimizer whose step on a part of a parameter is not a part of its step.

    Args:
        cls: the optimizer's class.
        kwargs: its keyword arguments.
        groups: the groups of whole parameters; their options and the numbers of dimensions count.

    Raises:
        ConfigurationError: naming it, and the cure.
    """
    whole, half = _samples(groups, _ROWS), _samples(groups, _ROWS // 2)
    if not any(group["params"] for group in whole):
        return
    before = [p.detach().clone() for group in whole for p in group["params"]]
    for tried in (whole, half):
        optimizer = cls(tried, **kwargs)
        train = getattr(optimizer, "train", None)
        if callable(train):
            train()  # schedule-free ones step only in this mode
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            for sample in (p for group in tried for p in group["params"]):
                full = torch.randn(_ROWS, *sample.shape[1:], generator=generator)
                sample.grad = full[: len(sample)].to(sample.dtype)
            optimizer.step()
    samples = zip(
        before,
        (p for group in whole for p in group["params"]),
        (p for group in half for p in group["params"]),
        strict=True,
    )
    for start, one, other in samples:
        there = slice(0, len(other))
        moved, moved_too = (one - start)[there].detach(), (other - start[there]).detach()
        bound = 1e-3 * float(moved.abs().max()) + 1e-12
        if not torch.allclose(moved, moved_too, rtol=0.0, atol=bound):
            name = getattr(cls, "__name__", str(cls))
            raise ConfigurationError(
                f"Optimizer {name} does not work element by element, and strategy 'fsdp' gives each process a part of "
                "each parameter: use optim='adamw_torch', or strategy='ddp'."
            )


def _samples(groups: Sequence[Group], rows: int) -> list[Group]:
    """The groups with one small parameter for each number of dimensions; the same numbers for any `rows`."""
    made: list[Group] = []
    generator = torch.Generator().manual_seed(0)
    for group in groups:
        options = {key: value for key, value in group.items() if key != "params"}
        dims = sorted({p.dim() for p in group["params"] if p.dim() > 0})
        params = []
        for dim in dims:
            shape = (_ROWS, *((_WIDTH,) if dim > 1 else ()), *([1] * (dim - 2)))
            values = 0.02 * torch.randn(*shape, generator=generator)
            params.append(torch.nn.Parameter(values[:rows].clone()))
        made.append({**options, "params": params})
    return made
