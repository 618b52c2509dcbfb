"""Whether the model that a strategy gave back is the bare one again."""

from __future__ import annotations

from typing import Any

import torch

from drivetrain.testing.model import Small, build, collate, rows
from drivetrain.testing.scenario import Report

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def check_bare(trainer: Any, given: Small, closed: Any, report: Report, backward: bool) -> None:
    """Notes what is not as it was, and calls the model on this process alone.

    Args:
        trainer: after its last run.
        given: the model that the trainer was made with.
        closed: what the strategy gave from `close()`.
        report: its `bare` and `bare_loss` are filled.
        backward: whether this process calls the model; the others wait for it, so that no collective can be meant.
    """
    model, wrong = trainer.model, report.bare
    if type(model) is not Small:
        wrong.append(f"trainer.model is a {type(model).__name__}, and was a Small.")
    elif model is not given:
        wrong.append("trainer.model is another model than the one that was trained.")
    if closed is not model:
        wrong.append(f"close() gave a {type(closed).__name__} back that is not the bare model.")
    if model.head.weight is not model.embedding.weight:
        wrong.append("head.weight and embedding.weight were one parameter, and are two.")
    before = dict(build().named_parameters())
    after = dict(model.named_parameters())
    if odd := sorted(before.keys() ^ after.keys()):
        how = "there and were not" if odd[0] in after else "gone"
        wrong.append(f"parameters are {how}: {', '.join(odd[:3])}.")
        return
    for name, parameter in after.items():
        if type(parameter) is not torch.nn.Parameter:
            wrong.append(f"{name} is a {type(parameter).__name__}, and was a Parameter.")
        elif parameter.shape != before[name].shape:
            wrong.append(
                f"{name} has the shape {tuple(parameter.shape)}, and had {tuple(before[name].shape)}."
            )
        elif parameter.dtype != before[name].dtype:
            wrong.append(f"{name} is {parameter.dtype}, and was {before[name].dtype}.")
        elif parameter.requires_grad != before[name].requires_grad:
            wrong.append(f"{name} {'is trained' if parameter.requires_grad else 'is frozen'}, and was not.")
    left = sorted({kind for module in model.modules() for kind in HOOKS if getattr(module, kind, None)})
    if left:
        wrong.append(f"hooks are left on its modules ({', '.join(left)}).")
    if any(getattr(p, kind, None) for p in model.parameters() for kind in PARAMETER_HOOKS):
        wrong.append("hooks are left on its parameters.")
    if backward and not wrong:
        _call(model, report)


def _call(model: Small, report: Report) -> None:
    """Forward and backward of one batch, in which nobody else takes part."""
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in collate(rows(3, 4)).items()}
    model.eval()
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    report.bare_loss = float(loss.detach())
    alone = build().to(device).eval()
    alone.load_state_dict(model.state_dict())
    alone(**batch)["loss"].backward()
    for (name, parameter), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        if (parameter.grad is None) != (other.grad is None):
            report.bare.append(
                f"a backward pass leaves {'no' if parameter.grad is None else 'a'} gradient of {name}."
            )
        elif (
            parameter.grad is not None
            and other.grad is not None
            and not torch.allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)
        ):
            report.bare.append(
                f"a backward pass gives another gradient of {name} than a new model with its weights."
            )
    model.zero_grad()
